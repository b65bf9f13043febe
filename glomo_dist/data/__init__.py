"""Text and images to shards of ids, and shards to batches in an order that is a pure function.

raw files --preparing--> documents, pictures --prepare.py--> shards --reading--> batches of one rank

storage/     files wherever they lie: found, opened, read to their end, as lines or rows
tokenizers/  words or pixels to ids
shards/      what a folder of shards is: written, its index, any sample of it checked
reading/     which sample comes when, and readers that have it in time
preparing/   raw text and images as documents and pictures; the demo's

Names are imported when they are used: a reader process needs a small part of this and starts in half a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glomo_dist.runtime import lazy

if TYPE_CHECKING:
    from glomo_dist.data.prepare import prepare_images, prepare_text
    from glomo_dist.data.reading.config import Reading
    from glomo_dist.data.reading.gather import BadShard
    from glomo_dist.data.reading.loader import Batch, SampleKey, Stream
    from glomo_dist.data.reading.order import Pieces, WindowOrder, Windows
    from glomo_dist.data.shards.index import ShardIndex, read_metadata, read_sample
    from glomo_dist.data.storage.places import Address, Place, exists, place
    from glomo_dist.data.tokenizers.pixels import PixelTokenizer
    from glomo_dist.data.tokenizers.text import WordTokenizer, between_spaces, tokenize
    from glomo_dist.data.tokenizers.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_json

__all__ = [
    "Address",
    "BadShard",
    "Batch",
    "Pieces",
    "PixelTokenizer",
    "Place",
    "Reading",
    "SampleKey",
    "ShardIndex",
    "Stream",
    "Tokenizer",
    "WindowOrder",
    "Windows",
    "WordTokenizer",
    "between_spaces",
    "exists",
    "load_tokenizer",
    "place",
    "prepare_images",
    "prepare_text",
    "read_metadata",
    "read_sample",
    "tokenize",
    "tokenizer_from_json",
]

__getattr__ = lazy.names(
    __name__,
    {
        "reading.config": ("Reading",),
        "reading.gather": ("BadShard",),
        "shards.index": ("ShardIndex", "read_metadata", "read_sample"),
        "reading.loader": ("Batch", "SampleKey", "Stream"),
        "reading.order": ("Pieces", "WindowOrder", "Windows"),
        "tokenizers.pixels": ("PixelTokenizer",),
        "storage.places": ("Address", "Place", "exists", "place"),
        "prepare": ("prepare_images", "prepare_text"),
        "tokenizers.text": ("WordTokenizer", "between_spaces", "tokenize"),
        "tokenizers.tokenizer": ("Tokenizer", "load_tokenizer", "tokenizer_from_json"),
    },
)
