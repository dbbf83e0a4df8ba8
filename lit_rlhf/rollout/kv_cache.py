"""Keys and values of a batch of rows in buffers allocated once, for a decode loop that drops finished rows.

The transformers library's own dynamic cache copies everything at every token (`torch.cat`) and can only be thinned by
copying what stays. Here a step writes one column in place, and a finished row is dropped by moving the *last* running
row into its slot, so that dropping costs the rows that move and the running rows stay a contiguous prefix.

Columns are left-padded: row i's prompt ends at column P, whatever its length, and all rows write the same column next.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from lit_rlhf.models.cpu import attention_dtype


class Window:
    """Where the next forward pass writes: rows ``[first_row, first_row + rows)`` from column ``column`` on.

    Attributes:
        first_row: First row written (0 while decoding).
        column: First column written.
        first_column: First column that attention sees; the ones before are padding in every running row.
        prefilling: Whether the pass starts its rows, and so attends to nothing but itself.
        position: ``column`` as a tensor ``(1,)``, for compiled steps, which must not see it as a constant; else None.
    """

    def __init__(self) -> None:
        self.first_row = self.column = self.first_column = 0
        self.prefilling = True
        self.position: Tensor | None = None


class RowLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's buffers, ``(rows, heads, columns, head size)`` each for keys and values."""

    def __init__(self, window: Window, rows: int, columns: int, *, static: bool) -> None:
        super().__init__()
        self.window, self.rows, self.columns = window, rows, columns
        self.is_compileable = static

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate with the heads, head sizes, dtype and device of the first states that come.

        The dtype is the one attention runs in: else every step would cast the whole cache.
        """
        make = torch.zeros if self.is_compileable else torch.empty
        self.keys, self.values = (
            make((self.rows, x.size(1), self.columns, x.size(3)), dtype=attention_dtype(x), device=x.device)
            for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the states into the window; return what attention sees."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window, (rows, _, length, _) = self.window, key_states.shape
        keys, values = (x[window.first_row : window.first_row + rows] for x in (self.keys, self.values))
        if window.position is not None and not window.prefilling:
            keys.index_copy_(2, window.position, key_states.to(keys.dtype))
            values.index_copy_(2, window.position, value_states.to(values.dtype))
            return keys, values
        end = window.column + length
        keys[:, :, window.column : end] = key_states
        values[:, :, window.column : end] = value_states
        if window.prefilling:
            # Attention gives padding columns weight 0, but 0 times garbage may be NaN.
            keys[:, :, : window.column], values[:, :, : window.column] = 0.0, 0.0
            return key_states, value_states
        return keys[:, :, window.first_column : end], values[:, :, window.first_column : end]

    def move_rows(self, source: Tensor, target: Tensor, *, stop: int) -> None:
        """Copy rows ``source`` over rows ``target``, columns before ``stop``."""
        self.keys[target, :, :stop] = self.keys[source, :, :stop]
        self.values[target, :, :stop] = self.values[source, :, :stop]

    def get_seq_length(self) -> int:
        """Columns that attention sees before the ones about to be written."""
        if self.window.prefilling:
            return 0
        return self.window.column - self.window.first_column

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what `update` returns."""
        if self.window.position is not None and not self.window.prefilling:
            return self.columns, 0
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Columns of the buffers."""
        return self.columns


class RowCache(Cache):  # type: ignore[misc]
    """Buffers of all layers, and the window they share.

    Args:
        layers: Layers of the model.
        rows: Rows it holds.
        columns: Prompt and response columns it holds.
        static: Whether decode steps see all columns at all times (under a mask), for `torch.compile` and CUDA graphs.
    """

    def __init__(self, *, layers: int, rows: int, columns: int, static: bool = False) -> None:
        self.window = Window()
        super().__init__(layers=[RowLayer(self.window, rows, columns, static=static) for _ in range(layers)])

    def aim_prefill(self, *, first_row: int, column: int) -> None:
        """Let the next pass start the rows from ``first_row`` on, its first token at ``column``."""
        self.window.prefilling, self.window.first_row, self.window.column = True, first_row, column

    def aim_decode(self, *, column: int, first_column: int, position: Tensor | None = None) -> None:
        """Let the next pass append one token to the leading rows at ``column``."""
        self.window.prefilling, self.window.first_row, self.window.column = False, 0, column
        self.window.first_column, self.window.position = first_column, position

    def move_rows(self, source: Tensor, target: Tensor, *, stop: int) -> None:
        """Copy rows ``source`` over rows ``target`` in every layer, columns before ``stop``."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.move_rows(source, target, stop=stop)
