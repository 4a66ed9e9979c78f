"""The derivatives of a batch loss that an unroll needs: plainly by autograd, or compiled along the network's layers."""

import functools
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.adjoint.chain import Chain, Residuals
from potstill.errors import PotstillError
from potstill.networks.functional import Parameters
from potstill.networks.losses import BatchLoss

log = logging.getLogger(__name__)

SHAPES = 64  # that a derivative may be compiled for; the compiler's own limit of 8 is too low for sets of many sizes

OPTIONS: dict[str, Any] = {
    "realize_reads_threshold": 2,  # store values of a channel; the compiler would recompute them at every pixel
    "cpp.enable_floating_point_contract_flag": "fast",  # multiply and add at once
}


@dataclass(frozen=True)
class Derivatives:
    """The two derivatives of a batch loss ℓ that an unroll needs.

    ``gradient(theta, x, z)`` is ∇θ ℓ (P,), and residuals of its computation that are worth storing, perhaps ().
    ``directional(theta, x, z, direction, residuals)`` is s = ⟨∇θ ℓ, direction⟩ and its gradients in theta, x and z;
    with the residuals of the gradient for the same arguments it is faster, with () it computes them again.  Both take
    an augmented micro-batch, images (b, C, H, W) and labels (b, K), and neither holds a graph.
    """

    gradient: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Residuals]]
    directional: Callable[[Tensor, Tensor, Tensor, Tensor, Residuals], tuple[Tensor, Tensor, Tensor, Tensor]]
    compiled: bool = False


def eager(loss: BatchLoss) -> Derivatives:
    """Reverse over reverse, by autograd: the fastest without a compiler (half the calls of ``torch.func``)."""

    def gradient(theta: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Residuals]:
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            return torch.autograd.grad(loss(theta, x, z), theta)[0], ()

    def directional(
        theta: Tensor, x: Tensor, z: Tensor, direction: Tensor, residuals: Residuals
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in (theta, x, z)]
            (gradient,) = torch.autograd.grad(loss(*inputs), inputs[0], create_graph=True)
            s = gradient @ direction
            d_theta, d_x, d_z = torch.autograd.grad(s, inputs)
            return s.detach(), d_theta, d_x, d_z

    return Derivatives(gradient, directional)


def compiled(loss: BatchLoss, graphs: bool = False) -> Derivatives:
    """Reverse over forward along the network's layers (:class:`potstill.adjoint.chain.Chain`), fused by the compiler.

    The compiled functions take and return parameters by name, because the compiler is slow at gathering them into one
    vector.  The first call of each derivative with each batch size compiles for about half a minute, the directional
    one with and without residuals; the result is cached between runs.

    Args:
        loss: of a batch.
        graphs: on CUDA record each function's kernels once and replay them as one launch.  A replay writes to the same
            memory as the one before, so what is found is copied out of it.

    Raises:
        PotstillError: the network has batch norm, whose running statistics cannot be traced.
    """
    network, chain = loss.network, _compilable(loss)

    def without_residuals(parameters: Parameters, x: Tensor, z: Tensor, direction: Parameters) -> Any:
        return chain.directional(parameters, x, z, direction, chain.gradient(parameters, x, z)[1])

    fast_gradient, fast_directional, fast_without_residuals = (
        # fullgraph: what cannot be traced whole is an error and gives a warning, never silently runs at plain speed
        torch.compile(function, dynamic=False, fullgraph=True, options=OPTIONS | {"triton.cudagraphs": graphs})
        for function in (chain.gradient, chain.directional, without_residuals)
    )

    def gradient(theta: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Residuals]:
        found, residuals = fast_gradient(network.unflatten(theta), x, z)
        gradient = network.flatten(found)  # a copy
        return gradient, tuple((y.clone(), slope.clone()) for y, slope in residuals) if graphs else residuals

    def directional(
        theta: Tensor, x: Tensor, z: Tensor, direction: Tensor, residuals: Residuals
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        arguments = (network.unflatten(theta), x, z, network.unflatten(direction))
        if residuals:
            s, found, s_x, s_z = fast_directional(*arguments, residuals)
        else:
            s, found, s_x, s_z = fast_without_residuals(*arguments)
        s, s_x, s_z = (tensor.clone() for tensor in (s, s_x, s_z)) if graphs else (s, s_x, s_z)
        return s, network.flatten(found), s_x, s_z

    obvious = eager(loss)
    return Derivatives(
        _with_fallback(gradient, obvious.gradient, "gradient"),
        _with_fallback(directional, obvious.directional, "derivative of the gradient"),
        compiled=True,
    )


def _compilable(loss: BatchLoss) -> Chain:
    """The layers of a network that can be compiled, for as many shapes as are asked for."""
    if loss.network.batch_coupled:
        raise PotstillError("batch norm cannot be compiled; use plain derivatives, or another norm.")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    return Chain(loss)


def compiled_loss(loss: BatchLoss) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """ℓ and ∇θ ℓ (P,) of a batch, compiled as in :func:`compiled`; each batch size compiles once."""
    network = loss.network
    fast = torch.compile(_compilable(loss).loss_and_gradient, dynamic=False, fullgraph=True, options=OPTIONS)

    def loss_and_gradient(theta: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = fast(network.unflatten(theta), x, z)
        return value, network.flatten(gradient)

    return _with_fallback(loss_and_gradient, functools.partial(plain_loss, loss), "gradient of real images")


def plain_loss(loss: BatchLoss, theta: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """ℓ and ∇θ ℓ (P,) of a batch by autograd."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        value = loss(theta, x, z)
        return value.detach(), torch.autograd.grad(value, theta)[0]


def _with_fallback(fast: Callable[..., Any], obvious: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``fast`` on detached arguments, or ``obvious`` from then on once compiling has failed, with a warning."""
    broken, announced = False, set[Any]()

    def call(*given: Any) -> Any:
        nonlocal broken
        if not broken:
            case = (given[1].shape, isinstance(given[-1], tuple) and not given[-1])  # no residuals: another function
            if case not in announced:
                announced.add(case)
                cost = "about half a minute, a few seconds from then on"
                log.info("compiling the %s for %d images: %s", name, len(given[1]), cost)
            try:
                return fast(*(each.detach() if isinstance(each, Tensor) else each for each in given))
            except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
                broken = True
                reason = " ".join(str(error).split()[:40])
                warnings.warn(f"compiling failed ({reason}); running plainly, which is slower", stacklevel=2)
        return obvious(*given)

    return call
