"""The contracts of other libraries: implicit's class and programs, a model of RecTools, a scorer of LensKit."""
