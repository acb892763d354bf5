"""`python -m envs.humanoidbench_scenes --from DIR` makes HumanoidBench's scenes ready, from your copy of HumanoidBench.

The scenes belong to HumanoidBench (MIT) and its robots (H1: BSD-3-Clause, Shadow hands: Apache-2.0), and are no part of
this library. DIR is a checkout of github.com/carlosferrazza/humanoid-bench, the installed package, or a folder with its
scenes. What physics does not need is left out, so that a scene takes 0.1 MB on disk instead of 15 to 18, and 6 to 8 MB
in memory instead of 55 to 70. They are kept in `$SEMRL_CACHE/humanoidbench`, by default `~/.cache/semrl/humanoidbench`.
For H1 without hands nothing has to be made: a scene that is not there is built from what EnvPool installs
(`envs.humanoidbench_h1`).

A stripped robot has the masses and the convex hulls of the original. Where several corners of a mesh touch a plane
alike, though, MuJoCo may pick others of them as contacts. Most steps are the same to six digits; the returns of random
policies differ by less than 1%. Whoever needs all digits simulates the original scenes, `envs.make(..., scenes=DIR)`,
for 200 MB more.
"""

import argparse
import ctypes
import gzip
import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from envs import humanoidbench_h1
from envs.base import TaskError
from envs.humanoidbench_tasks import FLOOR, PELVIS, ROBOTS, TASKS

COMMAND = "python -m envs.humanoidbench_scenes --from DIR"
SOURCE = "github.com/carlosferrazza/humanoid-bench"
PLACES = (".", "envs", "assets/envs", "humanoid_bench/assets/envs")  # of the scenes within DIR
ENDINGS = (".xml.gz", ".xml")  # stripped ones, and the original ones
UNREADABLE = (OSError, EOFError, ValueError)


def cache() -> Path:
    """Return the folder of the stripped scenes."""
    base = os.environ.get("SEMRL_CACHE")
    return (Path(base).expanduser() if base else Path.home() / ".cache" / "semrl") / "humanoidbench"


def scene_name(robot: str, task: str) -> str:
    """Return upstream's name of a scene: these robots are controlled by position."""
    return f"{robot}_pos_{task}"


def find_scene(folder: Path, name: str) -> Path | None:
    """Return the file of a scene in the cache or in a copy of HumanoidBench, the stripped one first."""
    paths = (folder / place / f"{name}{ending}" for place in PLACES for ending in ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def read_scene(path: Path) -> Any:
    """Return the mujoco.MjModel of a scene, stripped or not.

    Raises:
        ValueError: it cannot be read, or the engines cannot simulate it.
    """
    import mujoco

    if path.suffix == ".gz":
        model = mujoco.MjModel.from_xml_string(gzip.decompress(path.read_bytes()).decode())
    else:
        model = mujoco.MjModel.from_xml_path(str(path))
    check_scene(model)
    return model


def check_scene(model: Any) -> None:
    """Raise a ValueError if the engines cannot simulate a mujoco.MjModel."""
    if model.nbody <= PELVIS or model.body(PELVIS).name != "pelvis" or model.geom(FLOOR).name != "floor":
        raise ValueError("it is no scene of HumanoidBench")
    if not model.nkey:
        raise ValueError("it has no keyframe to begin from")
    stateful = [name for name in ("na", "nmocap", "nplugin", "nuserdata") if getattr(model, name)]
    if stateful:
        raise ValueError(f"it has a state beside positions and velocities ({', '.join(stateful)})")


def load_scene(robot: str, task: str, folder: str | None = None) -> Any:
    """Return the mujoco.MjModel of a task.

    Args:
        robot: one of `ROBOTS`.
        task: one of `TASKS`.
        folder: where the scenes are, stripped or not; by default the cache, and for H1 without hands EnvPool's assets
            where that has none.

    Raises:
        TaskError: the scene is missing or unusable; the message says how to get it.
    """
    place = cache() if folder is None else Path(folder).expanduser()
    path = find_scene(place, scene_name(robot, task))
    if path is not None:
        try:
            return read_scene(path)
        except UNREADABLE as error:
            raise TaskError(f"{path} is unusable ({one_line(error)}); make it again: `{COMMAND}`") from error
        finally:
            give_back_memory()
    built_here = robot == "h1" and folder is None
    asset = humanoidbench_h1.find_robot() if built_here else None
    if asset is None:
        envpool = f"{humanoidbench_h1.INSTALL} brings what it is built from, or " if built_here else ""
        raise TaskError(
            f"{robot}-{task}-v0 needs the scene {scene_name(robot, task)}, which is not in {place}; {envpool}"
            f"`{COMMAND}` makes it, where DIR is your copy of HumanoidBench ({SOURCE})"
        )
    try:
        model = humanoidbench_h1.build(asset, task)
        check_scene(model)
    except UNREADABLE as error:
        raise TaskError(f"{asset} is unusable ({one_line(error)}); `{COMMAND}` makes the scene without it") from error
    finally:
        give_back_memory()
    return model


def give_back_memory() -> None:
    """Hand back to the system what compiling meshes has taken, 100 to 200 MB: MuJoCo's cache, and what was freed."""
    import mujoco

    mujoco.mj_clearCache(mujoco.mj_getCache())
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def strip(path: Path) -> str:
    """Return a scene as one MJCF text that holds what its physics needs.

    Geoms that collide with nothing, materials and textures are dropped. Meshes become their convex hulls, which is all
    that MuJoCo collides. Inertias are written out, as some came from what was dropped.

    Raises:
        ValueError: MuJoCo cannot read the scene, or would simulate something else afterwards.
    """
    import mujoco

    compiled = mujoco.MjSpec.from_file(str(path))  # has ids; once it is compiled, it can no longer be cut down
    model = compiled.compile()
    bodies = [body.id for body in compiled.bodies]
    hulls = {model.mesh(mesh.id).name: hull(model, mesh.id) for mesh in compiled.meshes}
    visual = [not (model.geom_contype[geom.id] or model.geom_conaffinity[geom.id]) for geom in compiled.geoms]

    spec = mujoco.MjSpec.from_file(str(path))
    for body, index in zip(spec.bodies, bodies, strict=True):
        if index > 0 and model.body_mass[index] > 0:
            body.explicitinertial, body.mass, body.inertia = True, model.body_mass[index], model.body_inertia[index]
            body.ipos, body.iquat = model.body_ipos[index], model.body_iquat[index]
    unseen = [geom for geom, drop in zip(spec.geoms, visual, strict=True) if drop]
    for element in [*unseen, *spec.meshes, *spec.materials, *spec.textures]:
        spec.delete(element)
    for geom in spec.geoms:
        geom.material = ""
    for name in sorted({geom.meshname for geom in spec.geoms if geom.meshname}):
        spec.add_mesh(name=name, uservert=hulls[name].ravel())
    spec.compile()
    text = spec.to_xml()
    compare(model, mujoco.MjModel.from_xml_string(text))
    return text


def hull(model: Any, mesh: int) -> np.ndarray:
    """[V, 3] the corners of a mesh's convex hull, as MuJoCo has computed it for a mesh that collides; else none."""
    import mujoco

    start = model.mesh_graphadr[mesh]
    if start < 0:
        return np.empty((0, 3))
    count = model.mesh_graph[start]
    corners = model.mesh_graph[start + 2 + count : start + 2 + 2 * count]  # after two counts and an address per corner
    vertices = model.mesh_vert[model.mesh_vertadr[mesh] + corners].astype(np.float64)
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[mesh])
    return vertices @ rotation.reshape(3, 3).T + model.mesh_pos[mesh]


def compare(before: Any, after: Any) -> None:
    """Raise a ValueError if, contacts aside, two models move differently, by more than rounded numbers explain."""
    import mujoco

    moments = []
    for model in (before, after):
        data = mujoco.MjData(model)
        mujoco.mj_resetDataKeyframe(model, data, 0)
        data.qvel[:] = data.ctrl[:] = 0.1  # so that damping and gains matter
        mujoco.mj_forward(model, data)
        solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)  # a mesh has another centre than its hull
        parts = [data.xpos, data.xmat, data.site_xpos, data.actuator_force, data.qacc_smooth, model.geom_type[solid]]
        moments.append(np.concatenate([part.ravel() for part in parts]))
    one, other = moments
    if one.shape != other.shape or not np.allclose(one, other, rtol=1e-4, atol=1e-5):
        raise ValueError("without its visual parts MuJoCo makes another model of it")


def make_scene(source: Path, name: str) -> Path:
    """Put one scene of a folder into the cache, stripped, and return where it is.

    Raises:
        ValueError: it is unusable.
        OSError: it is missing, or the cache cannot be written to.
    """
    path = find_scene(source, name)
    if path is None:
        raise FileNotFoundError(f"there is none in {source}")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else strip(path).encode()
    target = cache() / f"{name}.xml.gz"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{os.getpid()}-{target.name}")
    try:
        part.write_bytes(gzip.compress(data, mtime=0))
        read_scene(part)
        part.replace(target)  # so that nobody ever reads half a file, or an unusable one
    finally:
        part.unlink(missing_ok=True)
    return target


def one_line(error: Exception) -> str:
    """Return the message of an error as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: list[str] | None = None) -> int:
    """Make the scenes and print a line for each. Return 0, 1 if some cannot be made, 2 if there are none in DIR."""
    parser = argparse.ArgumentParser(
        prog="python -m envs.humanoidbench_scenes",
        description=f"Make HumanoidBench's scenes ready in {cache()}, from a copy of {SOURCE}.",
    )
    parser.add_argument(
        "--from", dest="source", metavar="DIR", type=Path, help="checkout or package; by default the installed package"
    )
    source = parser.parse_args(arguments).source
    if source is None:
        package = find_spec("humanoid_bench")  # does not import it
        if package is None or not package.submodule_search_locations:
            print(f"humanoid_bench is not installed; give --from DIR, a checkout of {SOURCE}", file=sys.stderr)
            return 2
        source = Path(package.submodule_search_locations[0])
    names = [scene_name(robot, task) for robot in ROBOTS for task in TASKS]
    if not any(find_scene(source, name) for name in names):
        print(f"no scenes in {source}: it must be a checkout of {SOURCE} or its package", file=sys.stderr)
        return 2
    made = 0
    for name in names:
        try:
            path = make_scene(source, name)
        except UNREADABLE as error:
            print(f"{name}: {one_line(error)}", file=sys.stderr)
        else:
            made += 1
            print(f"{name}: {path.stat().st_size / 1000:.0f} kB")
    print(f"{made} of {len(names)} scenes are in {cache()}")
    return 0 if made == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
