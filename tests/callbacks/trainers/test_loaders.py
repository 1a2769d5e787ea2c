"""What a measurement reads: every sample once, in one order, on any number of ranks."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch.utilities
import numpy as np
import pytest
import pytorch_lightning.utilities
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper as OtherWrapper
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from ncmonitor import InputError
from ncmonitor.callbacks.trainers.loaders import (
    FirstBatches,
    choose,
    clean_loader,
    reads_stream,
    several,
    size_of,
    warn_streams_per_rank,
)
from ncmonitor.callbacks.trainers.variation import varies

EVERY = list(range(10))


class Numbers(Dataset[int]):
    """Sample i is the number i; a list of indices gives a whole batch."""

    def __init__(self, samples: int = 10) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: Any) -> Any:
        return torch.tensor(index) if isinstance(index, list) else int(index)


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(EVERY)


def batches(loader: Any) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


def samples(loader: Any) -> list[int]:
    return flat(batches(loader))


def flat(parts: list[list[int]]) -> list[int]:
    return list(itertools.chain(*parts))


def loader(**settings: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(), **({"batch_size": 4} | settings))


# -- each sample once ------------------------------------------------------------------------------


class Repeating(Sampler[int]):
    """A user's own: every sample three times."""

    def __iter__(self) -> Iterator[int]:
        return iter(EVERY * 3)

    def __len__(self) -> int:
        return 30


class OwnBatches(Sampler[list[int]]):
    """A user's own batch sampler, which does not say how large its batches are."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[3, 1], [4]])

    def __len__(self) -> int:
        return 2


class SizedBatches(OwnBatches):
    batch_size = 3


class Weighted(DistributedSampler[int]):
    """A distributed sampler whose indices are those of one rank."""

    indices = (1, 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"shuffle": True},
        {"shuffle": True, "drop_last": True},
        {"sampler": WeightedRandomSampler([1.0] * 10, 30)},
        {"sampler": RandomSampler(EVERY, replacement=True, num_samples=25)},
        {"sampler": Repeating()},
        {"sampler": DistributedSampler(Numbers(), 3, 1)},
        {"sampler": Weighted(Numbers(), 3, 1)},
        {"batch_sampler": BatchSampler(RandomSampler(EVERY), 4, True), "batch_size": 1},
        {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 3, "shuffle": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_sample_is_read_once_in_one_shuffled_order(settings: dict[str, Any]) -> None:
    clean = clean_loader(loader(**settings))
    first = batches(clean)

    assert sorted(flat(first)) == EVERY
    assert flat(first) != EVERY
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert batches(clean) == batches(clean_loader(loader())) == first
    assert size_of(clean) == 10


def test_the_global_generators_do_not_decide_the_order() -> None:
    orders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        orders.append(samples(clean_loader(loader(shuffle=True))))
    assert orders[0] == orders[1]


def test_data_sorted_by_class_come_in_batches_of_many_classes() -> None:
    clean = clean_loader(DataLoader(Numbers(1000), batch_size=50))
    assert all(len({i // 100 for i in batch}) > 5 for batch in batches(clean))  # ten classes


@pytest.mark.parametrize(
    "indices", [[7, 2, 5], [7, 2, 2, 5, 7], torch.tensor([7, 2, 5]), np.array([7, 2, 5])]
)
def test_a_subset_is_kept(indices: Any) -> None:
    clean = clean_loader(loader(sampler=SubsetRandomSampler(indices)))

    assert sorted(samples(clean)) == [2, 5, 7]
    assert all(type(key) is int for key in clean.sampler)


def test_an_explicit_list_is_a_subset() -> None:
    assert sorted(samples(clean_loader(loader(sampler=[7, 2, 2, 5])))) == [2, 5, 7]
    assert sorted(samples(clean_loader(loader(sampler=range(2, 5))))) == [2, 3, 4]


def test_an_explicit_list_of_batches_is_a_subset() -> None:
    for listed in ([[7, 2], [5, 7]], ((7, 2), (5, 7))):
        given: Any = listed
        clean = clean_loader(DataLoader(Numbers(), batch_sampler=given))
        assert sorted(samples(clean)) == [2, 5, 7]


def test_a_subset_within_a_batch_sampler_is_kept() -> None:
    sampler = BatchSampler(SubsetRandomSampler([7, 2, 5]), 2, drop_last=True)

    found = batches(clean_loader(DataLoader(Numbers(), batch_sampler=sampler)))
    assert [len(batch) for batch in found] == [2, 1]
    assert sorted(flat(found)) == [2, 5, 7]


@pytest.mark.parametrize("wrapper", [DistributedSamplerWrapper, OtherWrapper])
def test_a_subset_that_lightning_distributed_is_shared_out_by_ranks(wrapper: Any) -> None:
    shuffled = wrapper(SubsetRandomSampler([7, 2, 5, 9]), num_replicas=3, rank=1)
    ranks = [clean_loader(loader(sampler=shuffled), rank=r, ranks=3) for r in range(3)]

    found = [samples(rank) for rank in ranks]
    assert [len(rank) for rank in found] == [1, 1, 2]
    assert sorted(flat(found)) == [2, 5, 7, 9]


def test_a_weighting_that_lightning_distributed_is_replaced() -> None:
    inner = WeightedRandomSampler([0.0] * 9 + [1.0], 30)
    wrapped = DistributedSamplerWrapper(inner, num_replicas=2, rank=1)

    found = [samples(clean_loader(loader(sampler=wrapped), rank=r, ranks=2)) for r in range(2)]
    assert sorted(flat(found)) == EVERY
    assert len(found[1]) == 5


def test_a_batch_sampler_gives_its_batch_size_if_it_has_one() -> None:
    large = Numbers(130)
    told = clean_loader(DataLoader(large, batch_sampler=SizedBatches()))
    untold = clean_loader(DataLoader(large, batch_sampler=OwnBatches()))

    assert [len(batch) for batch in told] == [3] * 43 + [1]
    assert [len(batch) for batch in untold] == [64, 64, 2]


def test_a_data_set_that_makes_the_batches_is_read_item_by_item() -> None:
    data = TensorDataset(torch.arange(12).reshape(3, 4))
    clean = clean_loader(DataLoader(data, batch_size=None, shuffle=True), batch_size=2)

    assert [batch[0].tolist() for batch in clean] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert size_of(clean) is None
    first = clean_loader(DataLoader(data, batch_size=None), 1, limited=True)
    assert [batch[0].tolist() for batch in first] == [[0, 1, 2, 3]]


@pytest.mark.parametrize("wrap", [False, True])
def test_a_data_set_that_is_asked_for_lists_of_indices_still_is(wrap: bool) -> None:
    sampler: Any = BatchSampler(RandomSampler(EVERY), 4, drop_last=True)
    sampler = DistributedSamplerWrapper(sampler, num_replicas=1, rank=0) if wrap else sampler
    fetching = DataLoader(Numbers(), batch_size=None, sampler=sampler)

    found = batches(clean_loader(fetching))
    assert found == batches(clean_loader(loader()))
    order = flat(found)
    assert batches(clean_loader(fetching, batch_size=8)) == [order[:8], order[8:]]
    assert size_of(clean_loader(fetching)) == 10


class Doubling(DataLoader[Any]):
    """As in torch_geometric: its own parameters, and a collate function of its own making."""

    def __init__(self, data: Dataset[Any], factor: int, **settings: Any) -> None:
        super().__init__(data, collate_fn=lambda items: factor * torch.tensor(items), **settings)


def nothing(worker: int) -> None:
    pass


def test_a_subclass_keeps_its_collate_function_and_worker_settings() -> None:
    theirs = Doubling(
        Numbers(), 2, batch_size=5, shuffle=True, num_workers=2, timeout=7, prefetch_factor=5,
        multiprocessing_context="spawn", worker_init_fn=nothing, persistent_workers=True,
    )  # fmt: skip
    clean = clean_loader(theirs)

    assert clean.collate_fn([1, 2]).tolist() == [2, 4]
    assert (clean.num_workers, clean.timeout, clean.prefetch_factor) == (2, 7, 5)
    assert clean.multiprocessing_context is theirs.multiprocessing_context
    assert clean.worker_init_fn is nothing
    assert not clean.persistent_workers
    doubled = samples(clean_loader(Doubling(Numbers(), 2, batch_size=5)))
    assert sorted(doubled) == list(range(0, 20, 2))


def test_memory_is_pinned_where_the_user_pins_it() -> None:
    clean = clean_loader(loader(pin_memory=True, pin_memory_device="cuda"))

    assert (clean.pin_memory, clean.pin_memory_device) == (True, "cuda")


def test_the_users_generator_is_not_moved_on() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()

    samples(clean_loader(loader(shuffle=True, generator=generator)))

    assert torch.equal(generator.get_state(), before)


def test_a_data_set_without_a_length_is_refused_unless_its_keys_are_listed() -> None:
    class Unsized(Dataset[int]):
        def __getitem__(self, index: int) -> int:
            return index

    with pytest.raises(InputError, match=r"Unsized has no length.*sampler= a list of the keys"):
        clean_loader(DataLoader(Unsized(), sampler=Repeating()))
    assert sorted(samples(clean_loader(DataLoader(Unsized(), sampler=[4, 2])))) == [2, 4]


# -- on several ranks ------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("count", range(11))
def test_ranks_share_the_data_without_gap_or_copy(count: int, ranks: int) -> None:
    user = DataLoader(Numbers(count), batch_size=2, drop_last=True)
    shards = [clean_loader(user, rank=rank, ranks=ranks) for rank in range(ranks)]
    sizes = [len(samples(shard)) for shard in shards]

    found = [i for shard in shards for i in samples(shard)]
    assert sorted(found) == EVERY[:count]
    assert found == samples(clean_loader(user))  # the order of one process
    assert max(sizes) - min(sizes) <= 1
    assert [size_of(shard) for shard in shards] == sizes


@pytest.mark.parametrize("count", range(4))
def test_a_list_of_batches_is_shared_too(count: int) -> None:
    data = [torch.tensor([i, i]) for i in range(count)]
    shards = [clean_loader(data, rank=rank, ranks=2) for rank in range(2)]

    assert [batch for shard in shards for batch in batches(shard)] == [[i, i] for i in range(count)]
    assert abs(len(shards[0]) - len(shards[1])) <= 1


def test_batches_of_the_data_set_are_shared() -> None:
    data = TensorDataset(torch.arange(12).reshape(3, 4))
    user = DataLoader(data, batch_size=None)
    shards = [list(clean_loader(user, rank=rank, ranks=2)) for rank in range(2)]

    assert [batch[0][0].item() for shard in shards for batch in shard] == [0, 4, 8]
    assert [len(shard) for shard in shards] == [1, 2]


def test_a_stream_is_read_whole_by_every_rank_with_one_warning() -> None:
    stream = DataLoader(Stream(), batch_size=4)
    assert samples(clean_loader(stream, rank=1, ranks=2)) == EVERY

    both = {"train": stream, "val0": loader(), "val1": iter([])}
    with pytest.warns(UserWarning, match="train, val1 is a stream: each of the 3 ranks") as caught:
        warn_streams_per_rank(both, 3)
    assert len(caught) == 1
    warn_streams_per_rank(both, 1)  # alone: no warning, which would fail the test
    warn_streams_per_rank({"train": loader(), "val": [torch.zeros(1)]}, 3)


# -- limits and sizes ------------------------------------------------------------------------------


def test_a_limit_holds_for_sized_data_only_if_asked_for() -> None:
    assert sorted(samples(clean_loader(loader(), 1))) == EVERY
    assert sorted(samples(clean_loader(loader(), 1, limited=True))) == EVERY[:4]
    assert sorted(samples(clean_loader(loader(), limited=True))) == EVERY


def test_a_limit_is_per_rank() -> None:
    user = loader(sampler=SubsetRandomSampler(EVERY[::-1]), batch_size=2)
    shards = [samples(clean_loader(user, 2, limited=True, rank=r, ranks=2)) for r in range(2)]

    assert [len(shard) for shard in shards] == [4, 4]
    assert sorted(flat(shards)) == EVERY[2:]


def test_a_limited_list_is_shared_and_not_multiplied() -> None:
    data = [torch.tensor([i]) for i in range(10)]
    shards = [samples(clean_loader(data, 4, limited=True, rank=r, ranks=2)) for r in range(2)]

    assert shards == [[0, 1], [2, 3]]
    assert samples(clean_loader(data, 4)) == EVERY


def test_another_batch_size_changes_no_sample() -> None:
    smaller = batches(clean_loader(loader(), 1, limited=True, batch_size=2))
    assert [len(batch) for batch in smaller] == [2, 2]
    assert sorted(flat(smaller)) == EVERY[:4]
    assert samples(clean_loader(loader(), batch_size=8)) == samples(clean_loader(loader()))


def test_a_stream_ends_where_the_trainer_stops_reading() -> None:
    stream = DataLoader(Stream(), batch_size=4, drop_last=True)

    assert batches(clean_loader(stream)) == [EVERY[:4], EVERY[4:8], EVERY[8:]]
    assert batches(clean_loader(stream, 2)) == [EVERY[:4], EVERY[4:8]]
    assert batches(clean_loader(stream, 2, batch_size=2)) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert size_of(clean_loader(stream)) is None
    assert size_of(clean_loader(stream, 2)) is None


def test_an_iterable_is_read_as_it_is() -> None:
    class Own:
        def __iter__(self) -> Iterator[torch.Tensor]:
            return (torch.tensor([i]) for i in itertools.count())

    limited = clean_loader(Own(), 3)

    assert isinstance(limited, FirstBatches)
    assert samples(limited) == samples(limited) == [0, 1, 2]
    assert size_of(limited) is None


def test_only_data_that_can_be_indexed_is_no_stream() -> None:
    assert not reads_stream(loader())
    assert not reads_stream([torch.zeros(1)])
    assert reads_stream(DataLoader(Stream()))
    assert reads_stream(clean_loader(DataLoader(Stream()), 3))


# -- which loader ----------------------------------------------------------------------------------

A, B = loader(), loader()


@pytest.mark.parametrize(
    "combined",
    [
        pytorch_lightning.utilities.CombinedLoader,
        lightning.pytorch.utilities.CombinedLoader,
        lambda loaders: loaders,
    ],
)
def test_a_key_or_position_picks_one_of_several_loaders(combined: Callable[[Any], Any]) -> None:
    assert choose(combined({"labelled": A, "unlabelled": B}), "unlabelled") is B
    assert choose(combined([A, B]), 1) is B
    assert choose(combined({"labelled": A})) is A
    assert choose(combined([[B]])) is B
    assert choose(combined({"labelled": [A]}), "labelled") is A
    assert several(combined({"x": A, "y": [B, A]})) == [A, B, A]


def test_one_loader_needs_no_choice() -> None:
    assert choose(A) is A
    assert choose(pytorch_lightning.utilities.CombinedLoader(A)) is A
    assert several(A) == [A]
    assert several(None) == []


def test_a_list_of_batches_is_one_loader() -> None:
    for one in (
        [torch.zeros(2), torch.ones(2)],
        [(torch.zeros(2), torch.zeros(2))],
        [{"x": torch.zeros(2)}],
        [[np.zeros(2), np.zeros(2)]],
    ):
        assert choose(one) is one
        assert several(one) == [one]


@pytest.mark.parametrize(
    ("source", "key", "message"),
    [
        ({"labelled": A, "other": B}, None, "got 2 .keys: 'labelled', 'other'.: pass dataloader="),
        ([A, B], None, "got 2 .keys: 0, 1."),
        ({}, None, "got 0 .keys: none."),
        ({"labelled": A, "other": B}, "labeled", "no .* 'labeled'; did you mean 'labelled'"),
        ([A, B], 2, "no training loader 2; there are: 0, 1"),
        ([A, B], True, "no training loader True"),
        (A, "labelled", "there is only one: leave dataloader= out"),
        ({"x": [A, B]}, "x", "keys: 0, 1"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_with_the_keys(
    source: Any, key: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        choose(source, key)


# -- items that vary -------------------------------------------------------------------------------


class Items(Dataset[Any]):
    def __init__(self, make: Callable[[int], Any], count: int = 9) -> None:
        self.make, self.count = make, count
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.make(index)


@dataclass
class Sample:
    x: torch.Tensor


@dataclass(slots=True)
class Slotted:
    x: torch.Tensor


class Plain:
    """Without a notion of equality, as graph data sets give."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.me = self


def image(value: float) -> Image.Image:
    return Image.fromarray(np.full((2, 2), 255 * value).astype(np.uint8))


def one(*_: Any) -> torch.Tensor:
    return torch.ones(2)


AUGMENTED: list[Callable[[int], Any]] = [
    lambda i: (torch.rand(3), i),
    lambda i: (one(), np.random.rand()),  # noqa: NPY002
    lambda i: (one(), random.random()),
    lambda i: {"x": [one(), torch.rand(2)], "y": i},
    lambda i: image(random.random()),
    lambda i: np.random.rand(2, 2),  # noqa: NPY002
    lambda i: Sample(torch.rand(2)),
    lambda i: Slotted(torch.rand(2)),
    lambda i: Plain(torch.rand(2)),
    lambda i: "flipped" if torch.rand(1) < 0.5 else "not",
    lambda i: (one(), torch.rand(1) < 0.1),
    lambda i: torch.zeros(2 if random.random() < 0.5 else 3),
    lambda i: one().flip(0) if torch.rand(()) < 0.5 else None,
    lambda i: torch.tensor(float("nan") if random.random() < 0.5 else 1.0),
]
FIXED: list[Callable[[int], Any]] = [
    lambda i: (one(), i),
    lambda i: (torch.tensor([float("nan"), 1.0]), float("nan"), np.array([np.nan])),
    lambda i: {"x": image(0.3), "name": f"{i}.png", "none": None},
    lambda i: [Sample(one()), Slotted(one()), Plain(one()), object(), lambda: None],
    lambda i: (torch.ones(2, dtype=torch.bool), np.array(["a", "b"]), np.float32(1)),
]


@pytest.mark.parametrize("make", AUGMENTED)
def test_random_augmentation_is_seen(make: Callable[[int], Any]) -> None:
    assert varies(DataLoader(Items(make))) is True


@pytest.mark.parametrize("make", FIXED)
def test_items_that_are_the_same_twice_do_not_vary(make: Callable[[int], Any]) -> None:
    assert varies(DataLoader(Items(make))) is False


def test_a_coin_is_seen_to_fall_both_ways_whichever_generator_throws_it() -> None:
    def third_coin(draw: Callable[[], float]) -> Callable[[int], Any]:
        return lambda i: [draw() < 0.5 for _ in range(3)][2]

    draws = (random.random, np.random.rand, lambda: float(torch.rand(())))
    for draw in draws:
        assert varies(DataLoader(Items(third_coin(draw), count=1))) is True


def test_the_first_the_middle_and_the_last_sample_are_read_twice() -> None:
    data = Items(one)
    assert varies(DataLoader(data, shuffle=True)) is False
    assert data.read == [0, 0, 4, 4, 8, 8]

    data = Items(one)
    assert varies(DataLoader(data, sampler=SubsetRandomSampler([5, 3]))) is False
    assert data.read == [5, 5, 3, 3]


def test_one_varying_sample_among_those_read_is_enough() -> None:
    assert varies(DataLoader(Items(lambda i: torch.rand(1) if i == 8 else one()))) is True


def test_batched_reading_is_tried_with_a_list() -> None:
    sampler = BatchSampler(RandomSampler(EVERY), 4, drop_last=False)
    assert varies(DataLoader(Numbers(), batch_size=None, sampler=sampler)) is False


def broken(_: int) -> Any:
    torch.rand(1)
    random.random()
    np.random.rand()  # noqa: NPY002
    raise OSError("no such file")


@pytest.mark.parametrize(
    "source",
    [
        DataLoader(Stream()),
        DataLoader(Items(broken)),
        DataLoader(Items(one, count=0)),
        [torch.zeros(2)],
        FirstBatches(DataLoader(Stream()), 2),
    ],
)
def test_what_cannot_be_read_twice_is_not_told(source: Any) -> None:
    assert varies(source) is None


@pytest.mark.parametrize("make", [AUGMENTED[0], AUGMENTED[1], AUGMENTED[2], FIXED[0], broken])
def test_looking_for_augmentation_moves_no_global_generator(make: Callable[[int], Any]) -> None:
    def states() -> list[Any]:
        _, keys, *position = np.random.get_state(legacy=True)  # noqa: NPY002
        return [torch.get_rng_state().tolist(), list(keys), position, random.getstate()]

    before = states()
    varies(DataLoader(Items(make), shuffle=True))
    assert states() == before
