"""What representations, critics and policies look like from within: numbers for TensorBoard and for papers.

    out |= describe_torso("actor", actor.torso, obs)  # repr/actor_* and, where it ends in a SEM block, sem/actor_*

Every function gives one tensor of one element (or a few, by name). None draws random numbers, changes what it is given,
or waits for the device, but for the two ranks: an eigenvalue solver on a GPU looks whether it has converged.

`features` are [B, D], what a layer makes of a batch, or [Q, B, D] of Q critics; then the mean over the critics comes
out. Half precision is widened first. A feature that is not finite makes ranks and norms NaN, never an error. Shares of
units depend on the batch: measure on a fixed number of samples.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from networks.layers import BatchedLayerNorm, BatchedLinear
from networks.residual import FlashEmbedding, RMSNorm, SphereEmbedding, UnitLinear
from networks.sem import SEM, entropy
from networks.torso import Pixels, TaskEmbedding

AFFINE = (nn.Linear, nn.Conv2d, BatchedLinear, UnitLinear)
BATCHED = (BatchedLinear, UnitLinear)
"""those whose weights may be of several copies, [Q, in, out]"""
NORMS = (nn.LayerNorm, BatchedLayerNorm, RMSNorm)
NO_UNITS = (*AFFINE, *NORMS, Pixels, TaskEmbedding, SphereEmbedding, FlashEmbedding)
"""layers of a torso after which nothing is active yet"""
MICRO = 4
"""micro-batches that the noise of a gradient is estimated from"""
PROBE = 1_024
"""samples that a report looks at, at most. Of the CPU time of training at the small presets, reports then take 0.7%
with FastTD3 and FastSAC, 0.4% with PPO on HalfCheetah, and 0.9% on Atari and CartPole, the fastest to train. Half of it
is for gradients."""
VALUES = 1 << 17
"""values that a histogram is made of, at most"""


def wide(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 where it is."""
    return x if x.dtype == torch.float64 else x.float()


# ---- ranks -----------------------------------------------------------------------------------------------------------


def singular_values(features: Tensor) -> Tensor:
    """Return the singular values of each matrix over its largest entry, in falling order: [..., B, D] to [..., min].

    Square roots of the eigenvalues of the smaller Gram matrix, in float64: half the time of an SVD. Values
    below the rounding of that matrix (5e-7 of the largest at 1,024 samples) are 0, as are all of a zero matrix. NaN
    where the matrix is not finite.
    """
    x = features.double()
    largest = x.abs().amax((-2, -1), keepdim=True)
    usable = largest.isfinite() & (largest > 0)
    x = torch.where(usable, x / largest, 0.0)  # the solver refuses what is not finite
    power = torch.linalg.eigvalsh(x.mT @ x if x.shape[-2] >= x.shape[-1] else x @ x.mT).flip(-1)
    rounding = max(x.shape[-2:]) * torch.finfo(x.dtype).eps
    values = power.where(power > rounding * power[..., :1], 0.0).sqrt()
    return values.where(largest[..., 0].isfinite(), math.nan)


def spectral_ranks(features: Tensor, energy: float = 0.99) -> tuple[Tensor, Tensor]:
    """Return `effective_rank` and `srank` for the price of one."""
    values = singular_values(features)
    total = values.sum(-1, keepdim=True)
    share = values / total.where(total != 0, 1.0)
    effective = torch.special.entr(share).sum(-1).exp()
    # The slack keeps rounding from adding a value: of 300 equal ones, 297 are enough.
    stable = (share.cumsum(-1) < energy - 1e-6).sum(-1) + 1.0
    some, known = total[..., 0] > 0, total[..., 0]  # 0 of a zero matrix, and NaN stays NaN
    return effective.where(some, known).mean(), stable.where(some, known).mean()


def effective_rank(features: Tensor) -> Tensor:
    """Return exp(entropy of the singular values, as shares of their sum): 1 to min(B, D), and 0 for a zero matrix.

    How many directions the features spread over. They are not centred, as is usual in reinforcement learning: where all
    are positive, their mean is the first direction, and often the largest.
    Source: Roy & Vetterli, "The effective rank: a measure of effective dimensionality" (EUSIPCO 2007).
    """
    return spectral_ranks(features)[0]


def srank(features: Tensor, energy: float = 0.99) -> Tensor:
    """Return how many of the largest singular values make up `energy` of their sum; 0 for a zero matrix.

    Source: Kumar et al., "Implicit Under-Parameterization Inhibits Data-Efficient Deep RL" (2021), with delta = 0.01.
    """
    return spectral_ranks(features, energy)[1]


# ---- units and norms -------------------------------------------------------------------------------------------------


def dormant(features: Tensor) -> Tensor:
    """Return the share of units whose largest activation over the batch is not above 0.

    For ReLU: such a unit gives nothing and gets no gradient. Never so for a softmax; of a tanh it says the sign only.
    Source: Castanyer et al., "Stable Gradients for Stable Learning at Scale in Deep RL" (2025), reference
    implementation.
    """
    return (features.amax(-2) <= 0).float().mean()


def dormant_tau(features: Tensor, tau: float = 0.025) -> Tensor:
    """Return the share of units whose mean absolute activation is at most `tau` times the mean over the layer's units.

    All units of a layer that gives only zeros.
    Source: Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement Learning" (ICML 2023), definition 3.1.
    """
    activity = wide(features).abs().mean(-2)
    return (activity <= tau * activity.mean(-1, keepdim=True)).float().mean()


def feature_norm(features: Tensor) -> Tensor:
    """Return the Euclidean norm of the features, mean over samples.

    A code of L simplices has between sqrt(L / V), all uniform, and sqrt(L), all one-hot.
    """
    return torch.linalg.vector_norm(wide(features), dim=-1).mean()


def weight_norm(module: nn.Module) -> Tensor:
    """Return the Euclidean norm of the weights of all affine maps and convolutions in a module; 0 where it has none.

    Without biases and without the gains of normalisation: networks with and without LayerNorm compare. Mean over the
    copies of a batched layer.
    Source: Lyle et al., "Understanding plasticity in neural networks" (2023), there of all parameters.
    """
    return weight_norms(module).mean()


def weight_norms(module: nn.Module) -> Tensor:
    """Return `weight_norm` of each copy, [Q], where layers are batched; of others [1]."""
    squares = torch.zeros((), dtype=torch.float64)
    for layer in module.modules():
        if isinstance(layer, AFFINE):
            square = layer.weight.detach().double().square()
            squares = squares + (square.sum((-2, -1)) if isinstance(layer, BATCHED) else square.sum())
    return squares.sqrt().reshape(-1)


def gini(features: Tensor) -> Tensor:
    """Return the Gini index of the absolute features, mean over samples: 0 all equal, 1 - 1/D only one above 0.

    The mean absolute difference of two units over twice their mean; 0 where all are 0. Sparse is near 1: a code of
    one-hot simplices has 1 - 1/V.
    Source: Hurley & Rickard, "Comparing Measures of Sparsity" (2009).
    """
    ordered = wide(features).abs().sort(-1).values
    units = ordered.shape[-1]
    weight = 2 * torch.arange(1, units + 1, dtype=ordered.dtype, device=ordered.device) - units - 1
    total = ordered.sum(-1)
    return ((ordered * weight).sum(-1) / (units * total.where(total != 0, 1.0))).mean()


# ---- simplices -------------------------------------------------------------------------------------------------------
# `codes` are [..., B, L*V], features on a product of `groups` simplices. Their entropy is in networks/sem.py.


def simplices(codes: Tensor, groups: int) -> Tensor:
    """Return codes by group, [..., B, L, V]."""
    return wide(codes).unflatten(-1, (groups, -1))


def perplexity(codes: Tensor, groups: int) -> Tensor:
    """Return exp(entropy of a group, mean over the batch), mean over groups: how many vertices a code spreads over.

    1 one-hot, V uniform.
    """
    return torch.special.entr(simplices(codes, groups)).sum(-1).mean(-2).exp().mean()


def usage_perplexity(codes: Tensor, groups: int) -> Tensor:
    """Return exp(entropy of a group's mean over the batch), mean over groups: how many vertices a batch spreads over.

    From `perplexity`, if all samples have one code, to V. For one group the logarithm of their ratio is what its vertex
    tells about the sample, in nats.
    Source: van den Oord et al., "Neural Discrete Representation Learning" (2017), reference implementation.
    """
    return torch.special.entr(simplices(codes, groups).mean(-3)).sum(-1).exp().mean()


def vertices_in_use(codes: Tensor, groups: int) -> Tensor:
    """Return how many vertices of a group are the most likely one of at least one sample, mean over groups: 1 to V.

    At most B. Source: the codebook usage of vector quantisation.
    """
    chunks = simplices(codes, groups)
    top = chunks.argmax(-1, keepdim=True) == torch.arange(chunks.shape[-1], device=chunks.device)
    return top.any(-3).sum(-1).float().mean()


def dead_vertices(codes: Tensor, groups: int) -> Tensor:
    """Return the share of vertices that get more than an even share, 1/V, from no sample.

    What `dormant` is to ReLU, with the level of a code that says nothing in place of 0: 1 where all codes are uniform.
    """
    chunks = simplices(codes, groups)
    return (chunks.amax(-3) * chunks.shape[-1] <= 1 + 1e-5).float().mean()  # a uniform code is 1/V but for rounding


def simplex_image(codes: Tensor, groups: int, cell: int = 8) -> Tensor:
    """Return how likely each vertex is on average, as an image for `SummaryWriter.add_image`: [1, L*cell, V*cell].

    A row per group, a column per vertex; [Q, B, L*V] gives the groups of one critic below those of another. Black is
    never, mid-grey an even share 1/V, white always, whatever V is.
    """
    share = simplices(codes, groups).mean(-3).flatten(0, -2)
    brightness = share ** (1 / math.log2(share.shape[-1]))
    return brightness.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[None]


# ---- online and target network ---------------------------------------------------------------------------------------


def vertex_agreement(online: Tensor, target: Tensor, groups: int) -> Tensor:
    """Return the share of groups and samples for which two networks have the same most likely vertex.

    1/V is chance. `online` and `target` are codes of the same samples.
    """
    return (simplices(online, groups).argmax(-1) == simplices(target, groups).argmax(-1)).float().mean()


def cosine_agreement(online: Tensor, target: Tensor) -> Tensor:
    """Return the cosine between the features of two networks for the same samples, mean over samples: -1 to 1.

    Features that are all 0 count as 0.
    """
    return F.cosine_similarity(wide(online), wide(target), dim=-1).mean()


# ---- critics ---------------------------------------------------------------------------------------------------------


def td_error(value: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of values [Q, B] and their targets [Q, B], [1, B] or [B].

    Of distributional critics: of the means of both distributions.
    """
    return (value - target.expand_as(value)).abs().mean()


def disagreement(value: Tensor) -> Tensor:
    """Return |Q1 - Q2| for values [Q, B], mean over samples and pairs of critics; 0 for a single one."""
    critics = value.shape[0]
    distance = (value[:, None] - value[None]).abs().sum((0, 1)) / max(critics * (critics - 1), 1)
    return distance.mean()


def cramer_distance(probs: Tensor, other: Tensor, support: Tensor) -> Tensor:
    """Return the integral of the squared difference of two distribution functions, mean over samples.

    In units of the return: it is |a - b| for two certain returns. `probs` and `other` are probabilities [..., B, K] of
    the ascending returns `support` [K].
    Source: Bellemare et al., "The Cramer Distance as a Solution to Biased Wasserstein Gradients" (2017), l_2^2.
    """
    gap = (wide(probs) - wide(other)).cumsum(-1)[..., :-1]  # constant between neighbouring atoms, 0 after the last
    return (gap.square() * support.diff()).sum(-1).mean()


class Clipped(NamedTuple):
    """Shares of the target's probability that lie beyond the ends of the support."""

    below: Tensor
    above: Tensor


def clipped_mass(probs: Tensor, atoms: Tensor, support: Tensor) -> Clipped:
    """Return the shares of the target distribution that projection moves to the ends of the support, mean over samples.

    Args:
        probs: [..., B, K] probabilities.
        atoms: [B, K] where they lie before projection, reward + discount * support.
        support: [K] ascending.
    """
    probs = wide(probs)
    below, above = (probs.where(x, 0.0).sum(-1).mean() for x in (atoms < support[0], atoms > support[-1]))
    return Clipped(below, above)


def suggested_range(probs: Tensor, atoms: Tensor, tail: float = 0.001) -> tuple[Tensor, Tensor]:
    """Return the narrowest v_min and v_max with at most `tail` of the batch's target probability beyond each.

    Arguments as in `clipped_mass`. While much is clipped, the true range is wider than what comes out: the atoms start
    from the present support and reach beyond it by one step's reward only.
    """
    weight = wide(probs).reshape(-1, *atoms.shape).mean(0).flatten().double()
    value, order = atoms.flatten().sort()
    reached = weight[order].cumsum(0)
    reached = reached / reached[-1]
    low, high = (value.masked_fill(left_out, math.inf).amin() for left_out in (reached <= tail, reached < 1 - tail))
    return low, high


# ---- gradients -------------------------------------------------------------------------------------------------------


def gradient_norm(module: nn.Module) -> Tensor:
    """Return the Euclidean norm of the gradients that the last backward pass left in a module; 0 without any."""
    return get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


class GradientNoise(NamedTuple):
    """How large a gradient is, and how much it differs between micro-batches."""

    mean: Tensor
    """[P], the gradient of all micro-batches together"""
    norm: Tensor
    """Euclidean norm of it"""
    variance: Tensor
    """of the gradient of one micro-batch, summed over all parameters (the trace of its covariance)"""


def gradient_noise(gradients: Iterable[Tensor]) -> GradientNoise:
    """Return mean and variance of gradients [P], one of each of several micro-batches of equal size.

    The mean of M of them has variance / M. With b samples in each, b * variance / norm^2 is about the batch size above
    which larger ones stop paying. A single one has a variance of NaN. A generator keeps only one of them in memory.
    Source: McCandlish et al., "An Empirical Model of Large-Batch Training" (2018), the simple noise scale.

    Raises:
        ValueError: there is none.
    """
    mean = scatter = torch.zeros((), dtype=torch.float64)
    count = 0
    for count, gradient in enumerate(gradients, 1):
        if count == 1:
            mean = gradient
            continue
        change = gradient - mean  # Welford's update
        scatter = scatter + torch.linalg.vector_norm(change).double().square() * ((count - 1) / count)
        mean = mean.add(change, alpha=1 / count)
    if not count:
        raise ValueError("there is no gradient to look at")
    return GradientNoise(mean, torch.linalg.vector_norm(mean), scatter / (count - 1))


def micro_batches(batch: TensorDict) -> tuple[TensorDict, ...]:
    """Return MICRO parts of a batch [B], of equal size; one for each sample where there are fewer."""
    size = max(len(batch) // MICRO, 1)
    return batch[: size * MICRO].split(size)


def describe_gradient(name: str, noise: GradientNoise, size: int) -> dict[str, Tensor]:
    """Return what can be said of the gradient of micro-batches of so many samples, by TensorBoard tag: `gradient/*`.

    `{name}_norm` is that of all micro-batches together, `{name}_variance` is of a single sample's gradient,
    `{name}_noise_scale` their ratio, variance / norm^2: about the batch size above which larger ones stop paying. It
    cannot get much above the number of samples probed, whose own noise is in the norm.
    """
    variance = size * noise.variance
    return {
        f"gradient/{name}_norm": noise.norm,
        f"gradient/{name}_variance": variance,
        f"gradient/{name}_noise_scale": variance / noise.norm.double().square(),
    }


def undrawn(device: torch.device) -> AbstractContextManager[None]:
    """Return a context at whose end the random streams of the CPU and of a device are as before."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


# ---- policies --------------------------------------------------------------------------------------------------------
# Churn: how much a policy changes where it was not asked to. The same probe batch, before an update and after it.


def action_churn(new: Tensor, old: Tensor) -> Tensor:
    """Return the mean absolute change of the actions [B, A] of a deterministic policy, or of a Gaussian's means.

    Source: Tang & Berseth, "Improving Deep Reinforcement Learning by Reducing the Chain Effect of Value and Policy
    Churn" (NeurIPS 2024).
    """
    return (new - old.expand_as(new)).abs().mean()


def greedy_churn(new: Tensor, old: Tensor) -> Tensor:
    """Return the share of samples whose most likely action changed; log-probabilities, logits or values [B, n].

    Source: Schaul et al., "The Phenomenon of Policy Churn" (NeurIPS 2022).
    """
    return (new.argmax(-1) != old.expand_as(new).argmax(-1)).float().mean()


def total_variation(new: Tensor, old: Tensor) -> Tensor:
    """Return half the sum of |p - q| over the probabilities [B, n] of two policies, mean over samples: 0 to 1.

    The share of actions that would have been drawn otherwise, at the least.
    """
    return 0.5 * (wide(new) - wide(old).expand_as(new)).abs().sum(-1).mean()


# ---- a network at once -----------------------------------------------------------------------------------------------


class Activations(NamedTuple):
    """What a torso makes of a batch, layer by layer."""

    hidden: list[Tensor]
    """after each hidden layer, [B, D] or [Q, B, D]; of a convolution [B*height*width, channels]"""
    before: Tensor
    """what the last hidden layer gets: the features before the SEM block, or before the layer that it would replace"""
    after: Tensor
    """what the torso gives"""
    codes: Tensor | None
    """what the last SEM block on the way gives"""

    def of(self, copy: int) -> Self:
        """Return those of one copy of a batched torso."""

        def own(x: Tensor) -> Tensor:
            return x[copy] if x.dim() == 3 else x

        codes = None if self.codes is None else own(self.codes)
        return type(self)([own(x) for x in self.hidden], own(self.before), own(self.after), codes)


def activations(torso: nn.Sequential, x: Tensor) -> Activations:
    """Return the hidden activations for a batch: the networks that `networks/torso.py` builds, run layer by layer.

    A hidden layer ends with its activation, or with a block that has one within, such as SEM.
    """
    hidden: list[Tensor] = []
    codes = None
    passed = [x]  # what goes from hidden layer to hidden layer
    for previous, layer in pairwise([None, *torso]):
        assert layer is not None
        x = layer(x)
        if isinstance(layer, (nn.Flatten, *NORMS)) and not isinstance(previous, AFFINE):
            passed[-1] = x  # of a residual stream the norm at its end
        elif not isinstance(layer, NO_UNITS):
            hidden.append(units(x))
            passed.append(x)
        if isinstance(layer, SEM):
            codes = x
    return Activations(hidden, units(passed[-2:][0]), x, codes)


def units(x: Tensor) -> Tensor:
    """Return images [B, C, H, W] as [B*H*W, C], a unit for each channel; all else as it is."""
    return x.movedim(1, -1).flatten(0, -2) if x.dim() == 4 else x


@torch.no_grad()
def describe_features(name: str, features: Tensor) -> dict[str, Tensor]:
    """Return what can be said of features, by TensorBoard tag: `repr/{name}_*`, named after the functions above."""
    effective, stable = spectral_ranks(features)
    return {
        f"repr/{name}_effective_rank": effective,
        f"repr/{name}_srank": stable,
        f"repr/{name}_dormant": dormant(features),
        f"repr/{name}_dormant_tau": dormant_tau(features),
        f"repr/{name}_feature_norm": feature_norm(features),
        f"repr/{name}_gini": gini(features),
    }


@torch.no_grad()
def describe_codes(name: str, codes: Tensor, groups: int) -> dict[str, Tensor]:
    """Return what can be said of codes, by TensorBoard tag: `sem/{name}_*`; `entropy` is over its maximum, log V."""
    measures = (entropy, perplexity, usage_perplexity, vertices_in_use, dead_vertices)
    return {f"sem/{name}_{measure.__name__}": measure(codes, groups) for measure in measures}


@torch.no_grad()
def describe_torso(
    name: str, torso: nn.Sequential, x: Tensor, target: nn.Sequential | None = None
) -> dict[str, Tensor]:
    """Return what can be said of a torso and of what it makes of a batch, by TensorBoard tag; nothing of an empty one.

    `describe_features` of what it gives under `{name}`, and of what its last layer gets under `{name}_trunk`, where the
    SEM paper measures. `{name}_network_*` are shares of the units of all hidden layers, `{name}_weight_norm` is that of
    the torso, `sem/{name}_temperature` is tau where it moves. With the torso of a target network, how far both agree:
    `repr/{name}_cosine_agreement`, and of codes `sem/{name}_vertex_agreement`.
    """
    if not len(torso):
        return {}
    found, block = activations(torso, x), last_block(torso)
    out = describe_activations(name, found, block) | {f"repr/{name}_weight_norm": weight_norm(torso)}
    if block is not None and isinstance(tau := block.temperature, Tensor):
        out[f"sem/{name}_temperature"] = tau.mean()
    if target is not None:
        other = activations(target, x)
        out[f"repr/{name}_cosine_agreement"] = cosine_agreement(found.after, other.after)
        if block is not None and found.codes is not None and other.codes is not None:
            agreement = vertex_agreement(found.codes, other.codes, block.config.groups)
            out[f"sem/{name}_vertex_agreement"] = agreement
    return out


@torch.no_grad()
def describe_copies(names: Sequence[str], torso: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
    """Return `describe_torso` of each copy in a batched torso, under a name each, for the price of one pass."""
    found, norms, block = activations(torso, x), weight_norms(torso), last_block(torso)
    out: dict[str, Tensor] = {}
    for copy, name in enumerate(names):
        out |= describe_activations(name, found.of(copy), block) | {f"repr/{name}_weight_norm": norms[copy]}
        if block is not None and isinstance(tau := block.temperature, Tensor):
            out[f"sem/{name}_temperature"] = tau.flatten().expand(len(names))[copy]
    return out


@torch.no_grad()
def draw_torso(names: Sequence[str], torso: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
    """Return what TensorBoard can show of what a torso makes of a batch, by tag; nothing of an empty one.

    Values [n] for histograms: the features that it gives (`repr/{name}_features`), those that its last layer gets
    (`repr/{name}_trunk_features`), and of SEM the largest coordinate of each code (`sem/{name}_largest`, 1/V to 1). An
    image [1, height, width] of SEM's codes: `simplex_image`, as `sem/{name}_simplices`. One name is for the torso with
    all its copies, in images one below another; several are for one copy each.
    """
    if not len(torso):
        return {}
    found, block = activations(torso, x), last_block(torso)
    out: dict[str, Tensor] = {}
    for copy, name in enumerate(names):
        own = found if len(names) == 1 else found.of(copy)
        out |= {f"repr/{name}_features": thinned(own.after), f"repr/{name}_trunk_features": thinned(own.before)}
        if block is not None and own.codes is not None:
            groups = block.config.groups
            out[f"sem/{name}_largest"] = thinned(simplices(own.codes, groups).amax(-1))
            out[f"sem/{name}_simplices"] = simplex_image(own.codes, groups)
    return out


def thinned(x: Tensor) -> Tensor:
    """Return at most `VALUES` of the values, evenly spaced: [...] to [n] float32."""
    flat = x.flatten()
    return flat[:: max(1, -(-flat.numel() // VALUES))].float()


def last_block(torso: nn.Sequential) -> SEM | None:
    """Return the last SEM block of a torso, None where there is none."""
    return next((layer for layer in reversed(torso) if isinstance(layer, SEM)), None)


def describe_activations(name: str, found: Activations, block: SEM | None) -> dict[str, Tensor]:
    """Return what can be said of activations, by TensorBoard tag: see `describe_torso`."""
    out = describe_features(f"{name}_trunk", found.before) | describe_features(name, found.after)
    if block is not None and found.codes is not None:
        out |= describe_codes(name, found.codes, block.config.groups)
    count = sum(layer.shape[-1] for layer in found.hidden)
    for measure in (dormant, dormant_tau):
        share = [measure(layer) * (layer.shape[-1] / count) for layer in found.hidden]
        out[f"repr/{name}_network_{measure.__name__}"] = torch.stack(share).sum()
    return out


@torch.no_grad()
def describe_returns(logits: Tensor, target_probs: Tensor, atoms: Tensor, support: Tensor) -> dict[str, Tensor]:
    """Return what can be said of two distributional critics and their target, by TensorBoard tag: `critic/*`.

    `suggested_v_min` and `_max` are what `suggested_range` says of the target.

    Args:
        logits: [2, B, K] of the critics.
        target_probs: [1, B, K], or [2, B, K] for a target each.
        atoms: [B, K] where the target's probability lies before projection.
        support: [K] ascending.
    """
    probs = torch.softmax(wide(logits), -1)
    value, low, high = (probs * support).sum(-1), support[0], support[-1]
    target_value = (target_probs * atoms.clamp(low, high)).sum(-1)  # of what is learned: projection keeps the mean
    clipped, suggested = clipped_mass(target_probs, atoms, support), suggested_range(target_probs, atoms)
    return {
        "critic/disagreement": disagreement(value),
        "critic/cramer_distance": cramer_distance(probs[0], probs[1], support),
        "critic/td_error": td_error(value, target_value),
        "critic/target_mass_below": clipped.below,
        "critic/target_mass_above": clipped.above,
        "critic/suggested_v_min": suggested[0],
        "critic/suggested_v_max": suggested[1],
    }
