"""The ops written as the plain dense formulas, for autograd in any dtype: what the backends are held against."""

import torch


def dense_weights(
    q,
    k,
    theta=None,
    *,
    kind="relu",
    lengths=None,
    causal=True,
    segments=None,
    positions=None,
    topk=None,
    keep=None,
    renormalise=True,
):
    """G [B, H, Tq, T], everything dense and nothing in place."""
    batch, _, rows, width = q.shape
    columns = k.shape[2]
    unit = torch.arange(rows) if positions is None else positions
    unit = unit.expand(batch, rows)
    lengths = torch.full((batch,), columns) if lengths is None else lengths
    j = torch.arange(columns)
    seen = (j < lengths[:, None])[:, None, :] & (unit < lengths[:, None])[:, :, None]
    if segments is not None:
        own = segments.gather(1, unit)
        seen = seen & (own[:, :, None] == segments[:, None, :])
    if causal:
        seen = seen & (j < unit[:, :, None])
    seen = seen[:, None]
    scores = q @ k.transpose(-1, -2)
    if kind == "softmax":
        hidden = (scores / width**0.5).masked_fill(~seen, -torch.inf)
        weights = torch.where(seen.any(-1, keepdim=True), hidden, 0).softmax(-1) * seen
        kept = weights * largest(weights, keep)
        total = kept.sum(-1, keepdim=True)
        return kept / torch.where(total > 0, total, 1) if renormalise else kept
    if kind == "relu":
        root = (scores if theta is None else scores - theta[..., None]).relu()
    else:
        root = scores
    a = (root * root).masked_fill(~seen, 0)
    if kind == "topk":
        a = a * largest(a, topk)
    kept = a * largest(a, keep)
    return kept / ((kept if renormalise else a).sum(-1, keepdim=True) + 1e-16)


def largest(values, count):
    """1 for the `count` (int or [B]) largest of each row, the first of equal ones, 0 for the others."""
    if count is None:
        return torch.ones_like(values)
    order = values.detach().sort(dim=-1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(values.shape[-1]).expand_as(order))
    return (rank < torch.as_tensor(count).view(-1, 1, 1, 1)).to(values.dtype)


def live_tiles(weights):
    """Which tiles of 64 x 64 weights [B, H, Tq, T] have a positive one: [B, H, ceil(Tq / 64), ceil(T / 64)]."""
    rows, columns = weights.shape[2:]
    padded = torch.nn.functional.pad(weights > 0, (0, -columns % 64, 0, -rows % 64))
    return padded.unflatten(3, (-1, 64)).unflatten(2, (-1, 64)).any(5).any(3)


def assert_nan_is_in_the_statistics(mix, q, k, v, kind):
    """The rows that see a key with NaN do not pass for rows of a single edge: their sum and their entropy are NaN.
    The score that is NaN counts as no edge. mix: affinity_mix."""
    weights = dense_weights(q, k, kind=kind)
    weights[..., 3] = 0
    k = k.clone()
    k[:, :, 3] = torch.nan
    stats = mix(q, k, v, kind=kind, return_stats=True)[1]
    spoiled = (torch.arange(k.shape[2]) > 3).expand_as(stats.edges)
    assert torch.equal(stats.row_sum.isnan(), spoiled)
    assert torch.equal(stats.entropy.isnan(), spoiled)
    torch.testing.assert_close(stats.edges.long(), (weights > 0).sum(-1))


SPANS = ("packed", "positions", "positions of each")


def short_documents(units):
    """Documents of 11 and of 20 units in turn, int64 [units]: within a panel of keys, and from its last key on."""
    at = torch.arange(units)
    return at // 31 * 2 + (at % 31 >= 11)


def spans_of(option, units):
    """Number of query rows (None: as many as units) and the options of an op on three samples of more than 140 units:
    documents packed in a row, or rows at five positions, of all samples or of each."""
    if option == "packed":
        at = torch.arange(units)
        segments = torch.stack([at // 70, short_documents(units), at * 0])
        return None, {"segments": segments, "lengths": torch.tensor([units, 140, 3])}
    positions = torch.tensor([7, 0, units - 1, 70, 7])
    if option == "positions of each":
        positions = torch.stack([positions, positions.flip(0), positions * 0])
    return 5, {"positions": positions}


def products(dense, heads):
    """All terms of graph_mix with heads=K as dense matrices [B, C', T, T], products formed."""
    layers = dense.unflatten(1, (-1, heads)).unbind(1)
    terms, product = [layers[0]], layers[0]
    for layer in layers[1:]:
        product = layer @ product
        terms += [layer, product]
    return torch.cat(terms, 1)


def upstream(output, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)


def gradients(output, inputs, seed=3):
    return torch.autograd.grad(output, inputs, upstream(output, seed))


def leaves(*tensors, dtype):
    return [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]


def assert_no_worse(name, got, exact, naive, factor=2.0, terms=1.0):
    """Errors at most twice those of plain PyTorch in the same dtype; `exact` is float64.

    For float64 itself there is nothing more exact to compare with: a relative 1e-12 then. terms: the size of what
    is added up, which may cancel to exactly 0 in plain PyTorch.
    """
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if not exact.numel():
        return
    error, base = ((x.double() - exact).abs().max().item() for x in (got, naive))
    scale = exact.abs().max().item()
    # Where PyTorch happens to be exact, and where terms cancel: a few roundings.
    floor = (1e-12 if got.dtype == torch.float64 else 4 * torch.finfo(got.dtype).eps) * max(scale, terms)
    message = f"{name}: error {error:.2e}, PyTorch's own {base:.2e}, size {scale:.2e}"
    assert error <= factor * base + floor, message


def assert_no_worse_on_the_whole(name, got, exact, naive, factor=2.0):
    """The same for the 2-norm of all errors, with no room for a few roundings, which long sums do not need."""
    error, base = ((x.double() - exact).norm().item() for x in (got, naive))
    assert error <= factor * base, (
        f"{name}: error {error:.2e}, {error / base:.2f} of PyTorch's own {base:.2e}"
    )


def of_processor(name):
    """Words of the first line of that name in /proc/cpuinfo."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.partition(":")[2].split() for line in file if line.startswith(name)), [])
    except OSError:
        return []
