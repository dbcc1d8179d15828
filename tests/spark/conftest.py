import pytest
from sparks import need_spark, start_spark


@pytest.fixture(scope="session")
def spark():
    need_spark()
    session = start_spark()
    yield session
    session.stop()
