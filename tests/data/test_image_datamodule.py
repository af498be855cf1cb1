"""What all clean data modules share."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import pytorch_lightning as pl
import torch

from lit_adv.data import image_datamodule
from lit_adv.data.datasets import TensorImages
from lit_adv.data.image_datamodule import ImageDataModule, require_files


class Numbered(ImageDataModule):
    """Images whose pixels say which they are: 90 to train on, 31 to test on; classes of 60 %, 30 % and 10 %."""

    native_size = 2
    in_channels = 1
    own_validation = 0

    @property
    def classes(self):
        return ["a", "b", "c"]

    def prepare_data(self):
        """Nothing to do."""

    def _source(self, split):
        if split == "val" and not self.own_validation:
            return None
        count = {"train": 90, "val": self.own_validation, "test": 31}[split]
        images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2]).repeat(10)[:count]
        return TensorImages(images, labels)


def numbers(dataset):
    return (dataset.images[:, 0, 0, 0]).tolist()


def seen(loader):
    return [(images[:, 0, 0, 0] * 255).round().int().tolist() for images, _ in loader]


def test_sizes_and_shapes():
    data = Numbered(batch_size=32)
    data.setup()
    assert (len(data.train_dataset), len(data.val_dataset), len(data.test_dataset)) == (81, 9, 31)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (32, 1, 2, 2)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (data.num_classes, data.image_size, data.in_channels) == (3, 2, 1)


def test_split_is_a_partition_and_stratified():
    data = Numbered(validation=30)
    data.setup("fit")
    assert sorted(numbers(data.train_dataset) + numbers(data.val_dataset)) == list(range(90))
    assert data.val_dataset.labels.bincount().tolist() == [18, 9, 3]
    again, other = Numbered(validation=30), Numbered(validation=30, seed=1)
    again.setup("fit")
    other.setup("fit")
    assert numbers(again.val_dataset) == numbers(data.val_dataset)
    assert set(numbers(other.val_dataset)) != set(numbers(data.val_dataset))


def test_limits_are_stratified():
    data = Numbered(train_limit=20, test_limit=10, validation=0.5)
    data.setup()
    assert data.train_dataset.labels.bincount().tolist() == [12, 6, 2]
    assert data.test_dataset.labels.bincount().tolist() == [6, 3, 1]
    assert len(data.val_dataset) == 10
    assert not set(numbers(data.train_dataset)) & set(numbers(data.val_dataset))


def test_a_smaller_run_never_validates_on_what_a_larger_one_trained_on():
    large, small = Numbered(validation=0.2), Numbered(validation=0.2, train_limit=20)
    large.setup("fit")
    small.setup("fit")
    assert not set(numbers(small.val_dataset)) & set(numbers(large.train_dataset))


def test_own_validation_split_is_used():
    data = Numbered(train_limit=30)
    data.own_validation = 7
    data.setup("fit")
    assert (len(data.train_dataset), len(data.val_dataset)) == (30, 7)


def test_no_validation():
    data = Numbered(validation=0)
    data.setup("fit")
    assert len(data.train_dataset) == 90
    assert data.val_dataloader() == []


def test_setup_is_stage_aware_and_idempotent():
    data = Numbered()
    data.setup("test")
    assert not hasattr(data, "train_dataset")
    kept = data.test_dataset
    data.setup("validate")
    assert not hasattr(data, "train_dataset")
    validation = data.val_dataset
    data.setup("fit")
    data.setup("predict")
    data.setup()
    assert data.test_dataset is kept
    assert data.val_dataset is validation
    assert len(data.train_dataset) == 81
    assert not set(numbers(data.train_dataset)) & set(numbers(validation))


def test_training_order_is_of_seed_and_epoch():
    def order(seed, epoch):
        data = Numbered(seed=seed, batch_size=10, validation=10)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return seen(loader)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert {i for batch in order(0, 1) for i in batch} == {i for batch in order(0, 0) for i in batch}


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_evaluation_without_repeats(world):
    data = Numbered(batch_size=4, eval_batch_size=5)
    data.setup()
    shares = []
    for rank in range(world):
        with patch.object(image_datamodule, "rank_and_world", lambda rank=rank: (rank, world)):
            shares.append(seen(data.test_dataloader()))
    assert sorted(number for share in shares for batch in share for number in batch) == list(range(31))
    assert len({len(share) for share in shares}) == 1


def test_ranks_share_training_batches():
    """Two ranks with half the batch size each see together what one process sees."""
    whole, half = Numbered(batch_size=10, validation=10), Numbered(batch_size=5, validation=10)
    whole.setup("fit")
    half.setup("fit")
    shares = []
    for rank in range(2):
        with patch.object(image_datamodule, "rank_and_world", lambda rank=rank: (rank, 2)):
            shares.append(seen(half.train_dataloader()))
    together = [sorted(a + b) for a, b in zip(*shares, strict=True)]
    assert together == [sorted(batch) for batch in seen(whole.train_dataloader())]


def test_images_are_resized_to_8_bits():
    data = Numbered(image_size=5)
    data.setup("test")
    image, _ = data.test_dataset[7]
    assert data.image_size == 5
    assert torch.equal(image, torch.full((1, 5, 5), 7) / 255)


def test_only_training_images_are_augmented():
    data = Numbered(augment=True, image_size=16)
    data.setup()
    reads = {data.train_dataset[5][0].numpy().tobytes() for _ in range(20)}
    assert len(reads) > 5
    for dataset in (data.val_dataset, data.test_dataset):
        assert torch.equal(dataset[5][0], dataset[5][0])


def test_augmentation_is_of_seed_epoch_and_image():
    def read(seed, epoch, **options):
        data = Numbered(augment=True, image_size=16, validation=10, seed=seed, **options)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        images = torch.cat([images for images, _ in loader])
        return images[images.amax(dim=(1, 2, 3)).argsort(stable=True)]

    first = read(0, 3, batch_size=16)
    torch.manual_seed(1)
    assert torch.equal(first, read(0, 3, batch_size=8))
    assert torch.equal(first, read(0, 3, batch_size=16, num_workers=2))
    assert not torch.equal(first, read(0, 4, batch_size=16))


def test_workers_give_the_same_batches():
    data, parallel = Numbered(batch_size=20), Numbered(batch_size=20, num_workers=2)
    data.setup("fit")
    parallel.setup("fit")
    assert parallel.train_dataloader().persistent_workers
    assert seen(parallel.train_dataloader()) == seen(data.train_dataloader())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "Numbered: batch_size must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"validation": 1.0}, r"validation must be a share in \[0, 1\) or a number of images, got 1.0"),
        ({"validation": -1}, "validation must be"),
        ({"train_limit": 0}, "train_limit must be at least 1"),
    ],
)
def test_bad_fields(arguments, message):
    with pytest.raises(ValueError, match=message):
        Numbered(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_limit": 90}, r"ask for 9 \+ 90 images, but there are 90"),
        ({"validation": 90}, r"ask for 90 \+ some images, but there are 90"),
        ({"test_limit": 32}, "test_limit must be at most 31, the images there are, got 32"),
    ],
)
def test_more_images_than_there_are(arguments, message):
    with pytest.raises(ValueError, match=message):
        Numbered(**arguments).setup()


def test_missing_files_are_named(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(FileNotFoundError, match=r"Set: 'b' is not in '.*' \(buy it\)"):
        require_files("Set", tmp_path, ["a", "b"], "buy it")


class Seen(pl.LightningModule):
    """Notes what its steps are given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.batches.append(batch)


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64)])
def test_levels_go_to_the_device_and_steps_see_floats(precision, dtype, tmp_path):
    raw = []

    class Watched(Numbered):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            raw.append(batch[0])
            return batch

    data, plain, task = Watched(batch_size=20), Numbered(batch_size=20), Seen()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, datamodule=data)
    plain.setup("fit")
    expected = [*plain.train_dataloader(), *plain.val_dataloader()]
    assert {images.dtype for images in raw} == {torch.uint8}
    assert len(task.batches) == len(expected)
    for (images, labels), (wanted, truth) in zip(task.batches, expected, strict=True):
        assert images.dtype == dtype
        assert torch.equal(images, wanted.to(dtype))
        assert torch.equal(labels, truth)


def test_a_task_moves_its_batches_itself_where_it_wants_to():
    class Moving(Seen):
        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return [batch[0] // 2, batch[1]]

    data = Numbered()
    batch = [torch.full((2, 1, 2, 2), 102, dtype=torch.uint8), torch.tensor([0, 1])]
    moved = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert torch.equal(moved[0], torch.full((2, 1, 2, 2), 0.4))
    precision = SimpleNamespace(convert_input=lambda images: images)
    data.trainer = SimpleNamespace(lightning_module=Moving(), precision_plugin=precision)
    assert torch.equal(data.transfer_batch_to_device(batch, torch.device("cpu"), 0)[0], torch.full((2, 1, 2, 2), 0.2))
    # other things pass
    assert data.transfer_batch_to_device([torch.zeros(2), "x"], torch.device("cpu"), 0)[1] == "x"
