"""A user's own augmentation is one more operation, drawn apart from being applied."""

import pytest
import torch

from potstill.adjoint.derivatives import eager
from potstill.data import augment, own_augment
from potstill.errors import PotstillError
from potstill.networks.architectures import NetworkConfig
from potstill.networks.flat import flat_network
from potstill.networks.losses import label_loss

SHAPE = (3, 6, 6)
IMAGES = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))


def wave(images, numbers):
    """Not linear, and another for each image."""
    strength, phase = (numbers[:, k].view(-1, 1, 1, 1) for k in (0, 1))
    return images + strength * torch.sin(images + 6 * phase)


def test_it_is_drawn_and_applied_like_ours():
    name = own_augment.named(wave, SHAPE)
    assert name.startswith("own:wave#")
    drawings = [augment.draw((name,), 4, (6, 6), torch.Generator().manual_seed(3)) for _ in range(2)]
    numbers = drawings[0].parameters
    assert numbers.shape == (4, own_augment.NUMBERS)
    assert torch.equal(numbers, drawings[1].parameters)
    assert torch.equal(augment.apply(IMAGES, drawings[0]), wave(IMAGES, numbers))
    assert torch.equal(augment.apply(IMAGES[1:3], drawings[0][1:3]), wave(IMAGES, numbers)[1:3])
    chosen = {augment.draw((name, "flip"), 4, (6, 6), torch.Generator().manual_seed(k)).operation for k in range(20)}
    assert chosen == {name, "flip"}


def test_derivatives_go_through_it():
    """∂s/∂x of a step, s = ⟨∇θ ℓ(aug(x)), v⟩, in float64 against central differences."""
    network = flat_network(NetworkConfig("mlp", width=5), SHAPE, 3)
    draws = torch.Generator().manual_seed(0)
    theta, z = network.fresh(0).double(), torch.randn(4, 3, generator=draws).double()
    v, along = torch.randn(theta.shape, generator=draws).double(), torch.randn(4, *SHAPE, generator=draws).double()
    drawing = augment.draw((own_augment.named(wave, SHAPE),), 4, (6, 6), draws)
    found = eager(label_loss(network))
    x = IMAGES.double().requires_grad_()
    augmented = augment.apply(x, drawing)
    _, _, d_augmented, _ = found.directional(theta, augmented, z, v, ())
    (d_x,) = torch.autograd.grad(augmented, x, d_augmented)

    def s(images):
        return float(found.gradient(theta, augment.apply(images, drawing), z)[0] @ v)

    slope = (s(x.detach() + 1e-6 * along) - s(x.detach() - 1e-6 * along)) / 2e-6
    assert float((d_x * along).sum()) == pytest.approx(slope, rel=1e-6)


def test_its_name_tells_what_it_computes():
    def stronger(images, numbers):
        return wave(images, 2 * numbers)

    first, again, other = (own_augment.named(f, SHAPE) for f in (wave, lambda x, n: wave(x, n), stronger))
    assert first.partition("#")[2] == again.partition("#")[2] != other.partition("#")[2]
    assert own_augment.names(["flip", wave], SHAPE) == ("flip", first)
    assert own_augment.names(wave, SHAPE) == (first,)
    assert own_augment.has_function(["flip", wave])
    assert not own_augment.has_function(("flip", "crop"))


def test_a_name_whose_function_is_not_known_is_refused():
    drawing = augment.draw(("own:gone#12345678",), 4, (6, 6), torch.Generator())
    with pytest.raises(PotstillError, match=r"augment own:gone#12345678: was given as a function .*augment=function"):
        augment.apply(IMAGES, drawing)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: images, "augment lambda: fails .TypeError"),
        (lambda images, numbers: images[:, :, 1:], r"gives \(2, 3, 5, 6\) for images \(2, 3, 6, 6\)"),
        (lambda images, numbers: None, "gives NoneType for images"),
        (lambda images, numbers: images.detach().round(), "is not differentiable"),
        (lambda images, numbers: images + torch.randn(()), "draws random numbers itself"),
        (lambda images, numbers: images - images.mean(0), "depends on others of its batch"),
    ],
)
def test_what_cannot_be_repeated_is_refused(function, message):
    with pytest.raises(PotstillError, match=message):
        own_augment.named(function, SHAPE)
