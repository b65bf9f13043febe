"""Small encoders with random weights, and their tokenizers, saved as `transformers` saves real ones."""

import json
from pathlib import Path

import torch

PIECES = ("a", "film", "with", "good", "bad", "in", "##ten", "##tions", "tim", "##ing", "act", "##or", "##s", "al",
          "##pha", "be", "##ta", "the", "but", "its", "own", "voice", "us")  # fmt: skip


def write_bert(folder: Path, layers: int = 2, positions: int = 64) -> str:
    """A BERT of width 16 with word pieces; an unknown word is [UNK]."""
    return write_with_word_pieces(
        folder, "Bert", hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=positions,
    )  # fmt: skip


def write_with_word_pieces(folder: Path, kind: str, **config) -> str:
    """An encoder of any kind, "T5" or "T5Encoder", with the tokenizer of `write_bert`."""
    import transformers

    vocabulary = {piece: i for i, piece in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES))}
    model = getattr(transformers, f"{kind}Model")
    configured = getattr(transformers, f"{kind.removesuffix('Encoder')}Config")(
        **{"vocab_size": len(vocabulary), **config}
    )
    return _write(folder, transformers.BertTokenizer(vocab=vocabulary), model(configured))


def write_gpt2(folder: Path, generic: bool = False, eos: str | None = "<|endoftext|>") -> str:
    """A GPT-2 of width 16 whose byte-level tokenizer was trained on a few words: no padding token, no [CLS].

    generic: saved without its class, so that nothing puts a space before words that are given apart. eos: None for a
    tokenizer without any special token (generic only).
    """
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(["a film with good intentions and bad timing"] * 5, trainer)
    if generic:
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos)
    else:
        bpe.save(str(folder) + ".json")
        learned = json.loads(Path(str(folder) + ".json").read_text())["model"]
        merges = [tuple(pair) for pair in learned["merges"]]
        tokenizer = transformers.GPT2Tokenizer(vocab=learned["vocab"], merges=merges)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _write(folder, tokenizer, transformers.GPT2Model(config))


def _write(folder: Path, tokenizer, model: torch.nn.Module) -> str:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)
