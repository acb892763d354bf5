"""Contacts of a mesh with a plane on MuJoCo Warp, chosen as C MuJoCo of the same version chooses them.

MuJoCo 3 takes the lowest corner of the mesh's hull, and up to two more that are joined to it by an edge, below the
plane and not near it. MuJoCo Warp 3 takes four that span a large area instead. A humanoid's feet then push elsewhere,
and rewards of HumanoidBench differ by up to 0.1 from those of the benchmark. In MuJoCo 4 both choose alike.
"""

# ruff: noqa: UP018, RUF046  to Warp `int(0)` is a variable, which loops may change, and 0 is not

from typing import Final

import warp as wp
from mujoco_warp._src import collision_primitive
from mujoco_warp._src.collision_core import Geom
from mujoco_warp._src.types import MJ_MAXVAL, mat43

APART: Final = 0.3
"""distance of another corner from the lowest one, as a share of the mesh's radius, at least. Source: MuJoCo, 3.11"""
MOST: Final = 3
"""corners"""
FEW: Final = 10
"""vertices of a mesh that are all looked at, of which there are fewer"""


def use() -> None:
    """Have MuJoCo Warp choose by this; before its first kernel is built."""
    collision_primitive.plane_convex = corners


@wp.func
def vertex(mesh: Geom, corner: int) -> int:
    """Return which vertex of the mesh a corner of its hull is."""
    return mesh.graph[mesh.graphadr + 2 + mesh.graph[mesh.graphadr] + corner]


@wp.func
def by_edges(mesh: Geom) -> bool:
    """Return whether the lowest corner is found along the edges of the hull."""
    return mesh.graphadr >= 0 and mesh.vertnum >= wp.static(FEW)


@wp.func
def lowest(down: wp.vec3, mesh: Geom) -> int:
    """Return the corner, or of few the vertex, that is furthest in a direction of the mesh's own frame."""
    best = int(0)
    if not by_edges(mesh):
        for i in range(1, mesh.vertnum):
            if wp.dot(down, mesh.vert[mesh.vertadr + i]) > wp.dot(down, mesh.vert[mesh.vertadr + best]):
                best = int(i)
        return best
    edges = mesh.graphadr + 2 + 2 * mesh.graph[mesh.graphadr]
    furthest = wp.dot(down, mesh.vert[mesh.vertadr + vertex(mesh, best)])
    before = int(-1)
    while best != before:  # uphill along edges, which on a hull leads to the top
        before = best
        i = mesh.graph[mesh.graphadr + 2 + before]
        while mesh.graph[edges + i] >= 0:
            far = wp.dot(down, mesh.vert[mesh.vertadr + vertex(mesh, mesh.graph[edges + i])])
            if far > furthest:
                furthest = far
                best = mesh.graph[edges + i]
            i += 1
    return best


@wp.func
def corners(normal: wp.vec3, plane: wp.vec3, mesh: Geom) -> tuple[wp.vec4, mat43, wp.vec3]:
    """Return distances [4], `MJ_MAXVAL` where there is no contact, points [4, 3] between the two, and the normal.

    Args:
        normal: of the plane.
        plane: a point of it.
        mesh: where it is, and its hull.
    """
    distances = wp.vec4(MJ_MAXVAL, MJ_MAXVAL, MJ_MAXVAL, MJ_MAXVAL)
    points = mat43()
    first = lowest(-(wp.transpose(mesh.rot) @ normal), mesh)
    index = first
    if by_edges(mesh):
        index = vertex(mesh, first)
    start = mesh.pos + mesh.rot @ mesh.vert[mesh.vertadr + index]
    distances[0] = wp.dot(normal, start - plane)
    points[0] = start - 0.5 * distances[0] * normal
    i, edges = int(0), int(0)
    if mesh.graphadr >= 0:
        edges = mesh.graphadr + 2 + 2 * mesh.graph[mesh.graphadr]
        i = mesh.graph[mesh.graphadr + 2 + first]  # of few, MuJoCo takes a vertex's number for that of a corner
    count, more = int(1), bool(True)
    while more and count < wp.static(MOST):
        other = i
        if mesh.graphadr >= 0:
            more = mesh.graph[edges + i] >= 0
        else:
            more = i < mesh.vertnum
        if more:
            if mesh.graphadr >= 0:
                other = vertex(mesh, mesh.graph[edges + i])
            point = mesh.pos + mesh.rot @ mesh.vert[mesh.vertadr + other]
            above = wp.dot(normal, point - plane)
            if above < 0.0 and wp.length(point - points[0]) >= wp.static(APART) * wp.length(mesh.size):
                distances[count] = above
                points[count] = point - 0.5 * above * normal
                count += 1
        i += 1
    return distances, points, normal
