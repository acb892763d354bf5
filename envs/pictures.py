"""Pictures of MuJoCo worlds, without a display; and, where there is one, MuJoCo's own viewer."""

import ctypes
import os
import sys
from functools import cache
from typing import Any

import numpy as np

from envs.base import TaskError
from envs.host import one_line

SIZE = (480, 360)
"""width and height in pixels, where nobody asks for others"""


@cache
def prepare_gl() -> str:
    """Let MuJoCo draw without a display; returns why EnvPool's MuJoCo cannot, or nothing. Before a simulator is loaded.

    EnvPool brings an EGL of its own under a name that MuJoCo does not look for, and the process then ends within a
    call, without an exception. Where the system's EGL is loaded before it, for all to see, both use that one.
    """
    if not sys.platform.startswith("linux"):
        return ""
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    if any(name.startswith("envpool.mujoco.") and name.endswith("_envpool") for name in sys.modules):
        return "EnvPool was loaded before OpenGL, so film in a process of its own"
    try:
        ctypes.CDLL("libEGL.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return f"{error}; apt install libegl1 libgl1-mesa-dri, or the driver of the GPU, brings it"
    return ""


class Pictures:
    """What states of a MuJoCo model look like.

    Args:
        model: a mujoco.MjModel.
        size: width and height in pixels.
        camera: number of one of the model's, -1 for one that follows the first body that moves. By default the first
            of the model's, where it has one.
        distance: of the camera that follows, in metres; by default as the model says.
        everything: draw what models hide by default, too: the shapes that collide, in models without others.

    Raises:
        TaskError: there is no such camera, or no OpenGL.
    """

    def __init__(
        self,
        model: Any,
        size: tuple[int, int] | None = None,
        camera: int | None = None,
        distance: float | None = None,
        everything: bool = False,
    ) -> None:
        prepare_gl()
        import mujoco

        self._mujoco, self._model, self._data = mujoco, model, mujoco.MjData(model)
        number = camera if camera is not None else 0 if model.ncam and distance is None else -1
        if not -1 <= number < model.ncam:
            raise TaskError(f"there is no camera {number}, only -1 to {model.ncam - 1}")
        self._camera: Any = number
        if number == -1:
            self._camera = mujoco.MjvCamera()
            mujoco.mjv_defaultFreeCamera(model, self._camera)
            self._camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
            self._camera.trackbodyid = int(model.jnt_bodyid[0]) if model.njnt else 0
            if distance is not None:
                self._camera.distance, self._camera.azimuth, self._camera.elevation = distance, 135, -15
        self._options = mujoco.MjvOption()
        if everything:
            self._options.geomgroup[:] = 1
        width, height = size or SIZE
        screen = model.vis.global_
        screen.offwidth, screen.offheight = max(screen.offwidth, width), max(screen.offheight, height)
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except Exception as error:  # whatever the OpenGL of this machine raises
            raise TaskError(f"MuJoCo cannot draw here ({one_line(error)}); set MUJOCO_GL to egl or osmesa") from error
        if everything:  # on such shapes shadows flicker
            self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0

    def draw(self, **state: np.ndarray) -> np.ndarray:
        """Return the picture [H, W, 3] uint8 of a state: arrays of mujoco.MjData by name, qpos at least."""
        for name, values in state.items():
            getattr(self._data, name)[:] = values
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_comPos(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)
        self._renderer.update_scene(self._data, self._camera, self._options)
        return self._renderer.render()

    def close(self) -> None:
        """Release the OpenGL context."""
        self._renderer.close()


def require_display() -> None:
    """Do nothing where windows can be opened.

    Raises:
        TaskError: there is no display.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise TaskError("there is no display to open a window on; films need none")


class Viewer:
    """A window of MuJoCo's passive viewer, which shows one world as it moves; the mouse turns and follows it.

    Raises:
        TaskError: there is no display, or it cannot be opened.
    """

    def __init__(self, model: Any) -> None:
        require_display()
        import mujoco
        import mujoco.viewer

        self._mujoco, self._model, self._data = mujoco, model, mujoco.MjData(model)
        try:
            self._window = mujoco.viewer.launch_passive(model, self._data)
        except Exception as error:  # whatever the window system raises
            raise TaskError(f"MuJoCo's viewer cannot be opened here ({one_line(error)})") from error

    def show(self, **state: np.ndarray) -> bool:
        """Show a state: arrays of mujoco.MjData by name; returns whether the window is still open."""
        if not self._window.is_running():
            return False
        with self._window.lock():
            for name, values in state.items():
                getattr(self._data, name)[:] = values
            self._mujoco.mj_forward(self._model, self._data)
        self._window.sync()
        return True

    def close(self) -> None:
        """Close the window."""
        self._window.close()
