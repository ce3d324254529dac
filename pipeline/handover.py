"""How loader processes hand over their batches, and their errors.

Batches travel in shared memory where it suffices, and through pipes where it does not.

torch puts tensors of a loader process into /dev/shm and passes file descriptors through sockets.
Docker gives /dev/shm 64 MB, cluster jobs get long paths to sockets or few descriptors; then a batch
ends in a traceback or waits forever. A pipe needs none of them, and takes longer: a batch is copied
three times instead of once. Of an error torch hands on the text alone; here it keeps its facts.
"""

import pickle
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from pipeline.environment import shared_memory, use_short_sockets
from pipeline.errors import MtkdError

T = TypeVar("T")
PREFETCHED = 2  # batches that a loader process has ready, torch's default
TENSORS = 6  # of a batch, each with a descriptor
OTHER_FILES = 128  # that a training may have open


class HandOver:
    """A ``collate_fn`` that chooses for each batch how it travels; what arrives is the same.

    Args:
        collate: from items to a batch; by default dictionaries of tensors are stacked.
        processes: loader processes on this machine.
    """

    def __init__(self, collate: Callable[[list[Any]], Any] | None, processes: int) -> None:
        self.collate = collate
        self.processes = processes
        self.may_share = processes > 0 and _descriptors_suffice(processes) and use_short_sockets()

    def __call__(self, items: list[Any]) -> Any:
        """The batch of some items, or the first error among them."""
        failure = next((item for item in items if isinstance(item, Failure)), None)
        if failure is not None:
            return failure
        if get_worker_info() is None or self._fits(items):
            return (self.collate or default_collate)(items)
        return _piped(self.collate(items) if self.collate else _stacked(items))

    def _fits(self, items: list[Any]) -> bool:
        """Every process may be about to write its batch, after the same look at what is free."""
        free = shared_memory() if self.may_share else 0
        return free is None or free >= needed(nbytes(items), self.processes)


@dataclass(frozen=True)
class Failure:
    """In place of an item or a batch: the error that it ended in."""

    error: Exception


class HandedOver(Dataset[Any]):
    """A data set whose errors a user can mend are items, so that they keep their facts.

    Args:
        dataset: with items by index or key.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except Exception as error:
            if not _can_be_handed_over(error):
                raise
            return Failure(error)


class Loader(DataLoader[T]):
    """A loader of :class:`HandedOver` data: raises their errors as they were."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, Failure):
                raise batch.error
            yield batch


def _can_be_handed_over(error: Exception) -> bool:
    """Whether it says what is wrong with a file or a setting, and can be sent to a process."""
    if not isinstance(error, MtkdError) and not isinstance(getattr(error, "path", None), Path):
        return False
    try:
        return str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:  # classes of others may refuse in any way
        return False


def needed(batch: int, processes: int) -> int:
    """Bytes of shared memory that loader processes fill at the same time.

    Args:
        batch: bytes of each batch.
        processes: loader processes.
    """
    return PREFETCHED * processes * batch


def nbytes(items: Iterable[Any]) -> int:
    """The size of all arrays and tensors in dictionaries or sequences."""
    values = chain.from_iterable(map(_values, items))
    return sum(getattr(value, "nbytes", 0) for value in values)


def _values(item: Any) -> Sequence[Any]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, tuple | list) else [item]


def _descriptors_suffice(processes: int) -> bool:
    """Every tensor on its way is an open file, where torch passes descriptors."""
    if torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return True
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        limit == resource.RLIM_INFINITY
        or limit >= OTHER_FILES + 2 * TENSORS * PREFETCHED * processes
    )


def _stacked(items: Sequence[Any]) -> Any:
    """What ``default_collate`` gives, in the process's private memory."""
    if not isinstance(items[0], dict):
        return torch.stack(list(items))
    batch = {}
    for key in items[0]:
        batch[key] = torch.stack([item[key] for item in items])
    return batch


def _piped(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return _Piped(batch)
    if isinstance(batch, dict):
        return {key: _piped(value) for key, value in batch.items()}
    return tuple(map(_piped, batch)) if isinstance(batch, tuple) else batch


class _Piped:
    """A tensor that is sent as an array, and arrives as a tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.array: NDArray[Any] = tensor.numpy()

    def __reduce__(self) -> tuple[Callable[[NDArray[Any]], torch.Tensor], tuple[NDArray[Any]]]:
        return torch.from_numpy, (self.array,)
