"""glomo-dist: unsupervised pretraining of sparse relational graphs (GLoMo) and their transfer."""

__version__ = "0.1.0"
