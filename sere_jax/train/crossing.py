"""How gradients travel between devices: added up on each device first, then summed once over all of them.

Left to the compiler, each backward pass through a parameter sums over the devices by itself: once for the global crops and once for the
local ones, in the type of that pass, and again for each micro-batch. Here every device differentiates with respect to a copy of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sere_jax.types import PyTree


class Crossing(NamedTuple):
    """The devices that gradients are summed over, and the type in which they travel.

    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> crossing = Crossing(mesh)
    >>> copies = crossing.spread({"w": jnp.ones(3)})
    >>> copies["w"].shape, crossing.sum({"w": 2 * copies["w"]})["w"].tolist()
    ((1, 3), [2.0, 2.0, 2.0])
    """

    mesh: Mesh
    dtype: Any = jnp.float32

    @property
    def over_all(self) -> PartitionSpec:
        """Axis 0 over all devices: of copies, and of the rows of a batch."""
        return PartitionSpec(self.mesh.axis_names)

    def spread(self, params: PyTree) -> PyTree:
        """A copy for each device: [...] -> [devices, ...], cut along the new axis, so that a device holds one."""
        return self.place(jax.tree.map(lambda p: jnp.broadcast_to(p, (self.mesh.size, *p.shape)), params))

    def place(self, copies: PyTree) -> PyTree:
        """Keep each device's copy on that device."""
        return jax.lax.with_sharding_constraint(copies, NamedSharding(self.mesh, self.over_all))

    def sum(self, gradients: PyTree) -> PyTree:
        """The sum over the devices: [devices, ...] -> [...]. What crosses has `dtype`; the result has the gradients' type."""
        return jax.tree.map(lambda g: jnp.sum(g.astype(self.dtype), axis=0).astype(g.dtype), gradients)
