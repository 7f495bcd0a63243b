"""One process's images of every batch, at a position that does not depend on the processes."""

from __future__ import annotations

from typing import Any

import grain
import numpy as np

from vmoe.data.images import Batch


class OwnElements(grain.MapDataset):  # type: ignore[misc]
    """Of every `size` elements of a dataset those at the places `own`, in order."""

    def __init__(self, parent: grain.MapDataset, own: np.ndarray, size: int):
        super().__init__(parent)
        self._own, self._size = own.tolist(), size

    def __len__(self) -> int:
        return len(self._parent) // self._size * len(self._own)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, len(self._own))
        return self._parent[batch * self._size + self._own[place]]


class OwnPosition:
    """An iterator over batches of `own` elements, whose position counts those of whole batches."""

    def __init__(self, batches: Any, own: int, size: int):
        self._batches, self._own, self._size = batches, own, size

    def __next__(self) -> Batch:
        return next(self._batches)  # type: ignore[no-any-return]

    def get_state(self) -> dict[str, int]:
        """The position: elements of all processes."""
        return {"next_index": self._batches.get_state()["next_index"] // self._own * self._size}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position."""
        self._batches.set_state({"next_index": state["next_index"] // self._size * self._own})


class OwnOfBatches:
    """An iterator over whole batches, of which only the places `own` are handed out."""

    def __init__(self, batches: Any, own: np.ndarray):
        self._batches, self._own = batches, own
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self) -> Batch:
        return {name: array[self._own] for name, array in next(self._batches).items()}
