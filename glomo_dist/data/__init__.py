"""Text and images to shards of ids, and shards to batches in an order that is a pure function.

raw files --sources, images--> documents, pictures --prepare--> shards + index.json (shards)
shards --index, order, loader--> batches of one rank
"""

from glomo_dist.data.index import ShardIndex, read_metadata, read_sample
from glomo_dist.data.loader import Batch, SampleKey, Stream
from glomo_dist.data.order import Pieces, WindowOrder, Windows
from glomo_dist.data.pixels import PixelTokenizer
from glomo_dist.data.prepare import prepare_images, prepare_text
from glomo_dist.data.text import WordTokenizer, tokenize
from glomo_dist.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_json

__all__ = [
    "Batch",
    "Pieces",
    "PixelTokenizer",
    "SampleKey",
    "ShardIndex",
    "Stream",
    "Tokenizer",
    "WindowOrder",
    "Windows",
    "WordTokenizer",
    "load_tokenizer",
    "prepare_images",
    "prepare_text",
    "read_metadata",
    "read_sample",
    "tokenize",
    "tokenizer_from_json",
]
