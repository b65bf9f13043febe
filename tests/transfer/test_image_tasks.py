"""MNIST and CIFAR-10 in their published formats, bad files, and ResNet-18."""

import gzip
import io
import lzma
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.datasets.image_sets import image_data
from glomo_dist.transfer.finetune import run
from glomo_dist.transfer.job import FinetuneJob
from glomo_dist.transfer.readers.models import ReaderSizes
from glomo_dist.transfer.readers.resnet import ResNetReader
from glomo_dist.transfer.readers.sequences import Sequences
from glomo_dist.transfer.registry import get_task

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "images"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
RANDOM = np.random.default_rng(0)


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(folder, sizes=(60, 20), ending=".gz", side=28):
    folder.mkdir(exist_ok=True)
    pack = gzip.compress if ending else bytes
    written = {}
    for part, n in zip(("train", "t10k"), sizes, strict=True):
        images, labels = RANDOM.integers(0, 256, (n, side, side)), np.arange(n) % 10
        (folder / f"{part}-images-idx3-ubyte{ending}").write_bytes(pack(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte{ending}").write_bytes(pack(idx(labels)))
        written[part] = images.astype(np.uint8), labels
    return written


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist(tmp_path, ending):
    written = write_mnist(tmp_path, ending=ending)
    data = get_task("mnist").load(str(tmp_path), None)
    sizes = {name: len(split.labels) for name, split in data.splits.items()}
    assert sizes == {"train": 54, "dev": 6, "test": 20}
    test = data.splits["test"]
    np.testing.assert_array_equal(np.stack(test.columns["image"].values), written["t10k"][0])
    assert test.labels.tolist() == written["t10k"][1].tolist()
    got = [(x.tobytes(), y) for s in ("train", "dev") for x, y in pairs(data.splits[s])]
    assert sorted(got) == sorted((x.tobytes(), y) for x, y in zip(*written["train"], strict=True))
    capped = get_task("mnist").load(str(tmp_path), 5)
    assert [len(s.labels) for s in capped.splits.values()] == [5, 5, 5]


def test_blank_images_are_refused(tmp_path):
    write_mnist(tmp_path, ending="")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.full((60, 28, 28), 7)))
    with pytest.raises(DataError, match="task 'mnist': all pixels of the train images are 7"):
        get_task("mnist").load(str(tmp_path), None)


def test_dev_is_a_tenth_of_train_or_as_much_as_is_said():
    def sizes(train, dev):
        sets = [(RANDOM.integers(0, 256, (n, 2, 2)).astype(np.uint8), np.zeros(n, int)) for n in (train, 5)]
        splits = image_data("mine", *sets, ("a", "b"), dev, None).splits
        return [len(split.labels) for split in splits.values()]

    assert sizes(60, 3) == [57, 3, 5] and sizes(60, 5000) == [54, 6, 5]
    with pytest.raises(
        DataError, match=r"no example\. It is drawn from train, at most a tenth of it: is there"
    ):
        sizes(9, 5000)


def pairs(split):
    return zip(split.columns["image"].values, split.labels.tolist(), strict=True)


def test_mnist_bad_files(tmp_path):
    write_mnist(tmp_path, ending="")

    def refused(name, content, match):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=match):
            get_task("mnist").load(str(tmp_path), None)
        (tmp_path / name).write_bytes(before)

    labels = np.arange(60) % 10
    file = "train-labels-idx1-ubyte"
    refused(
        file,
        idx(np.where(labels == 3, 11, labels)),
        r"train-labels-idx1-ubyte: label 11 of image 3 is out of range, expected 0\.\.9\. Correct or remove",
    )
    refused(file, idx(labels)[:-1], r"train-labels-idx1-ubyte: the number of labels is not the promised one")
    refused(file, idx(labels)[:6], "the number of labels is not the promised one")
    refused(file, idx(labels[:50]), "images-idx3-ubyte has 60 images, .*labels-idx1-ubyte 50 labels")
    refused(file, b"\x80\x04K\x01.", "not an idx file of labels")
    refused("train-images-idx3-ubyte", idx(np.zeros((60, 28, 28)))[:-9], "image 59: the file ends early")
    refused("train-images-idx3-ubyte", b"", "images-idx3-ubyte is not an idx file .* Copy it again, or leave")
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=r"none of train-labels-idx1-ubyte \(or packed: \.gz"):
        get_task("mnist").load(str(tmp_path), None)


def test_a_batch_of_one_small_image_trains(tmp_path):
    """Of images up to 8 x 8 the last stage is one pixel: no variance to normalise by."""
    write_mnist(tmp_path, side=8)
    job = FinetuneJob(
        "mnist", task_source=str(tmp_path), features="pixels", hidden=1, epochs=1, train_size=33
    )
    assert 0 <= run(job).test <= 1


def write_cifar(folder, per_batch=8):
    folder.mkdir(parents=True, exist_ok=True)
    everything = []
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images, labels = RANDOM.integers(0, 256, (per_batch, 3, 32, 32)), RANDOM.integers(0, 10, per_batch)
        rows = np.concatenate([labels[:, None], images.reshape(per_batch, -1)], 1).astype(np.uint8)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
        everything.append((images.astype(np.uint8).transpose(0, 2, 3, 1), labels))
    return everything


def test_cifar10_binary(tmp_path):
    written = write_cifar(tmp_path / "cifar-10-batches-bin")
    data = get_task("cifar10").load(str(tmp_path), None)
    assert {name: len(split.labels) for name, split in data.splits.items()} == {
        "train": 36,
        "dev": 4,
        "test": 8,
    }
    assert data.classes[3] == "cat"
    images, labels = written[-1]
    np.testing.assert_array_equal(np.stack(data.splits["test"].columns["image"].values), images)
    assert data.splits["test"].labels.tolist() == labels.tolist()
    got = sorted((x.tobytes(), y) for s in ("train", "dev") for x, y in pairs(data.splits[s]))
    assert got == sorted((x.tobytes(), int(y)) for batch in written[:-1] for x, y in zip(*batch, strict=True))
    # the same images from an archive are the same task
    both = {"train": [np.concatenate(x) for x in zip(*written[:-1], strict=True)], "test": written[-1]}
    for part, (x, y) in both.items():
        np.savez(tmp_path / f"cifar10_{part}.npz", images=x, labels=y)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.rename(tmp_path / "binary.npz")  # a folder of this name is no archive
    assert get_task("cifar10").load(str(tmp_path / "binary.npz"), None).fingerprint == data.fingerprint
    assert get_task("cifar10").load(str(tmp_path), None).fingerprint == data.fingerprint
    for part in both:
        archive = tmp_path / f"cifar10_{part}.npz"
        archive.with_suffix(".npz.xz").write_bytes(lzma.compress(archive.read_bytes()))
        archive.unlink()
    assert get_task("cifar10").load(str(tmp_path), None).fingerprint == data.fingerprint


def test_cifar10_jpeg_archive(tmp_path):
    for part, n in (("train", 30), ("test", 10)):
        streams = []
        for i in range(n):
            buffer = io.BytesIO()
            Image.fromarray(np.full((32, 32, 3), (i * 8, 0, 255), np.uint8)).save(buffer, "JPEG")
            streams.append(buffer.getvalue())
        jpeg = np.frombuffer(b"".join(streams), np.uint8)
        offset = np.cumsum([0] + [len(s) for s in streams])
        np.savez(tmp_path / f"cifar10_jpeg_{part}.npz", jpeg=jpeg, offset=offset, label=np.arange(n) % 10)
    data = get_task("cifar10").load(str(tmp_path), None)
    image = data.splits["test"].columns["image"].values[5]
    assert image.shape == (32, 32, 3)
    assert abs(int(image[0, 0, 0]) - 40) <= 4
    assert image[..., 2].min() > 250


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_cifar10_bad_files(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"pickled Python batches.*not read\. Download the binary version"):
        get_task("cifar10").load(str(tmp_path), None)
    write_cifar(tmp_path)
    get_task("cifar10").load(str(tmp_path), None)
    batch = tmp_path / "data_batch_3.bin"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin: 24583 bytes, expected a multiple of 3073"):
        get_task("cifar10").load(str(tmp_path), None)
    batch.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(DataError, match=r"data_batch_3\.bin: label 10 of image 0 is out of range"):
        get_task("cifar10").load(str(tmp_path), None)
    batch.unlink()
    with pytest.raises(DataError, match=r"none of data_batch_3\.bin"):
        get_task("cifar10").load(str(tmp_path), None)
    other = tmp_path / "npz"
    other.mkdir()
    np.savez(other / "cifar10_train.npz", images=np.zeros((4, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match=r"cifar10_train\.npz: array 'label' is missing; it has images"):
        get_task("cifar10").load(str(other), None)
    np.savez(other / "cifar10_train.npz", images=np.zeros(1, np.uint8), label=np.array([Bomb()], object))
    with pytest.raises(DataError, match="could execute code, so it is not read"):
        get_task("cifar10").load(str(other), None)


@pytest.mark.parametrize("array", ["images", "label"])
def test_cifar10_damaged_archive(tmp_path, array):
    """The deflated bytes of one array are no longer any."""
    path = tmp_path / "cifar10_train.npz"
    images, label = RANDOM.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8), np.arange(40) % 10
    np.savez_compressed(path, images=images, label=label)
    content = bytearray(path.read_bytes())
    first = content.index(f"{array}.npy".encode()) + 60
    content[first : first + 30] = b"\xff" * 30
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cifar10_train\.npz(:| is) not a (readable|whole) \.npz file"):
        get_task("cifar10").load(str(tmp_path), None)


def test_resnet_is_the_usual_one():
    reader = ResNetReader(ReaderSizes(3, 64, 10, 0.0, shape=(32, 32)))
    assert sum(p.numel() for p in reader.parameters()) == 11_173_962
    small = ResNetReader(ReaderSizes(3, 4, 10, 0.0, shape=(32, 32))).eval()
    pixels = torch.randn(2, 32 * 32, 3)
    sizes = []
    for layer in small.layers:
        layer.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    assert small(Sequences(pixels, torch.tensor([1024, 1024]))).shape == (2, 10)
    stages = [(4, 32, 32)] * 2 + [(8, 16, 16)] * 2 + [(16, 8, 8)] * 2 + [(32, 4, 4)] * 2
    assert sizes[3:] == [*stages, (32, 1, 1), (32,)]


def test_an_image_task_from_files_to_a_result(tmp_path):
    write_mnist(tmp_path, sizes=(40, 10))
    fields = {"features": "pixels", "epochs": 1, "hidden": 2, "task_source": str(tmp_path)}
    result = run(FinetuneJob("mnist", "uniform", **fields))
    assert result.examples == {"train": 36, "dev": 4, "test": 10}
    assert set(result.metrics) == {"accuracy"}


@shared
def test_shared_images():
    mnist = get_task("mnist").load(str(SHARED / "mnist"), 300)
    images = np.stack(mnist.splits["test"].columns["image"].values)
    assert images.shape == (300, 28, 28)
    assert abs(images.mean() / 255 - 0.1307) < 0.01
    cifar = get_task("cifar10").load(str(SHARED), 200)
    assert cifar.splits["dev"].columns["image"].values[0].shape == (32, 32, 3)
    assert len(set(cifar.splits["test"].labels.tolist())) == 10
