"""A tiny random RoBERTa for tests, made on the spot: configuration, weights and a byte-level tokenizer."""

from pathlib import Path

TEXTS = [
    "a library for numerical work with arrays",
    "numerical arrays and linear algebra",
    "plays music files",
    "a player for music, films and radio streams, with a graphical interface and many plug-ins",
    "an editor",
    "editor for program text with syntax colours",
    "web server",
]


def tiny_roberta(folder: Path, *, layers: int = 5, positions: int = 40, dropout: float = 0.1, seed: int = 0) -> Path:
    """A RobertaModel of width 16 with its tokenizer in `folder`, as ``from_pretrained`` reads it."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=400, min_frequency=1, special_tokens=special, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save_model(str(folder))
    tokenizer = RobertaTokenizerFast.from_pretrained(folder, model_max_length=positions - 2)
    tokenizer.save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=positions,
        pad_token_id=1,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(seed)
    model = RobertaModel(config, add_pooling_layer=False)
    with torch.no_grad():  # the usual 0.02 would leave hidden states of all layers almost the same
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    model.save_pretrained(folder)
    return folder
