"""Domain randomisation of MuJoCo Warp's worlds: a pool of models whose physics differ, one of them for each episode.

    env = envs.make("Walker2d-v5", 4096, seed, device, backend="mjwarp",
                    randomise={"body_mass": (0.8, 1.2), "geom_friction": (0.5, 1.5)})

The models are made by MuJoCo itself, with all that it derives from masses and inertias, and put on the device once. So
an episode that begins costs a copy, and each world is exactly what C MuJoCo makes of that model.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from envs.base import TaskError, spawn_seeds

SCALED: dict[str, tuple[str, ...]] = {
    "body_mass": ("body_mass", "body_inertia"),  # a heavier body of the same shape
    "geom_friction": ("geom_friction",),
    "dof_damping": ("dof_damping",),
    "dof_armature": ("dof_armature",),
    "dof_frictionloss": ("dof_frictionloss",),
    "jnt_stiffness": ("jnt_stiffness",),
    "actuator_gear": ("actuator_gear",),  # the strength of a motor
}
"""what may be randomised, by MuJoCo's name, and the arrays of the model that are multiplied together"""
INERTIA = "meaninertia"
"""of the model's statistics; a scale that the solver goes by"""


class Variants:
    """Models of one task that differ in their physics: each entry (each body, each geom) has factors of its own.

    Args:
        mujoco: the module.
        warp_model: the class mujoco_warp.Model, which says what can differ between worlds.
        model: the mujoco.MjModel as it is.
        ranges: lowest and highest factor by MuJoCo's name, drawn evenly.
        count: models in the pool.

    Raises:
        TaskError: a name is not in `SCALED`, or a range is none.
    """

    def __init__(
        self, mujoco: Any, warp_model: type, model: Any, ranges: Mapping[str, Sequence[float]], count: int
    ) -> None:
        for name, bounds in ranges.items():
            if name not in SCALED:
                raise TaskError(f"randomise: {name!r} must be one of {', '.join(SCALED)}")
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < np.inf:
                raise TaskError(f"randomise: {name} is {bounds}, must be the lowest and highest factor, above 0")
        self._mujoco, self._model, self._ranges, self._count = mujoco, model, dict(ranges), count
        shared = [f.name for f in fields(warp_model) if getattr(f.type, "shape", ())[:1] == ("*",)]
        shared = [name for name in shared if hasattr(model, name) and not name.startswith(("cam_", "light_"))]
        plain, other = (self._variant(np.random.default_rng(0), among) for among in ((1.0, 1.0), (1.1, 1.9)))
        self.names = [name for name in shared if not np.array_equal(getattr(plain, name), getattr(other, name))]
        """arrays of the model that differ: those that were scaled, and what MuJoCo derives from them"""

    def pool(self, seed: int) -> dict[str, np.ndarray]:
        """Return the models [count, ...] of a seed, float32: what differs, and `INERTIA`."""
        rng = np.random.default_rng(spawn_seeds(seed, 1, "models")[0])
        models = [self._variant(rng) for _ in range(self._count)]
        found = {name: np.stack([getattr(model, name) for model in models]) for name in self.names}
        found[INERTIA] = np.array([model.stat.meaninertia for model in models])
        return {name: rows.astype(np.float32) for name, rows in found.items()}

    def model(self, values: Mapping[str, np.ndarray]) -> Any:
        """Return a mujoco.MjModel with the values of one model of the pool."""
        model = copy.copy(self._model)
        for name in self.names:
            array = getattr(model, name)
            array[:] = values[name].reshape(array.shape)
        model.stat.meaninertia = float(values[INERTIA])
        return model

    def _variant(self, rng: np.random.Generator, among: tuple[float, float] | None = None) -> Any:
        """Return a model whose factors are drawn from the ranges, or all from one."""
        model = copy.copy(self._model)
        for name, bounds in self._ranges.items():
            low, high = among or bounds
            factor = rng.uniform(low, high, size=len(getattr(model, name)))
            for array in (getattr(model, part) for part in SCALED[name]):
                array *= factor.reshape(-1, *[1] * (array.ndim - 1))
        self._mujoco.mj_setConst(model, self._mujoco.MjData(model))
        return model
