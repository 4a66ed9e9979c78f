"""A user's own network gives what its module gives, as a function of one vector."""

import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.adjoint.derivatives import eager
from potstill.errors import PotstillError
from potstill.networks import flat
from potstill.networks.architectures import NetworkConfig, build, own_network
from potstill.networks.losses import label_loss

SHAPE, CLASSES = (3, 8, 8), 4
IMAGES = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))


class Branched(nn.Module):
    """Layers of kinds that ours do not have, a buffer, in-place operations, and a head that is not last by name."""

    def __init__(self, channels, height, width, classes, norm=True, scale=0.5):
        super().__init__()
        self.head = nn.Linear(6, classes)
        self.stem = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.GroupNorm(2, 6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.act, self.scale = nn.ReLU(inplace=True), scale
        self.register_buffer("shift", torch.linspace(0, 1, 6)[:, None, None])

    def forward(self, images):
        x = self.act(self.norm(self.stem(images)))
        x = x + self.scale * F.silu(self.depthwise(x + self.shift))
        return self.head(x.mean((2, 3)))


def without_norm(*sizes):
    return Branched(*sizes, norm=False)


def flat_of(factory):
    return flat.flat_network(own_network(factory, SHAPE, CLASSES), SHAPE, CLASSES)


def module_of(factory, seed):
    torch.manual_seed(seed)
    return factory(*SHAPE, CLASSES)


def test_outputs_features_and_running_statistics_are_the_modules():
    network, module = flat_of(Branched), module_of(Branched, 3)
    theta, buffers, state = network.fresh(3), network.initial_buffers(), torch.get_rng_state()
    for _ in range(3):
        assert torch.equal(network(theta, IMAGES, buffers), module(IMAGES))
    assert torch.equal(network(theta, IMAGES), module(IMAGES))
    assert torch.equal(F.linear(network.features(theta, IMAGES), module.head.weight, module.head.bias), module(IMAGES))
    module = network.as_module(theta, buffers)
    assert isinstance(module, Branched)
    assert not module.training
    assert torch.equal(network(theta, IMAGES, buffers, training=False), module(IMAGES))
    assert float(module.norm.num_batches_tracked) == 3
    network.fresh(9)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(PotstillError, match="pass those it was trained with"):
        network(theta, IMAGES, training=False)


def test_a_network_of_ours_given_as_ones_own_is_the_same():
    config = NetworkConfig("convnet", width=4, depth=2)
    ours = flat.flat_network(config, SHAPE, CLASSES)
    own = flat_of(lambda *sizes: build(config, sizes[:3], sizes[3]))
    assert torch.equal(own.fresh(5), ours.fresh(5))
    theta = ours.fresh(5)
    assert torch.equal(own(theta, IMAGES), ours(theta, IMAGES))
    assert torch.equal(own.features(theta, IMAGES), ours.features(theta, IMAGES))


@pytest.mark.parametrize("factory", [Branched, without_norm])
def test_second_derivatives_are_those_of_finite_differences(factory):
    """s = ⟨∇θ ℓ, v⟩ and its gradients, in float64 against central differences along random directions."""
    network, draws = flat_of(factory), torch.Generator().manual_seed(0)
    theta = network.fresh(1).double()
    x, z = IMAGES.double(), torch.randn(5, CLASSES, generator=draws, dtype=torch.float64)
    v, *along = (torch.randn(t.shape, generator=draws, dtype=torch.float64) for t in (theta, theta, x, z))
    found = eager(label_loss(network))
    s, *gradients = found.directional(theta, x, z, v, ())
    loss, eps = label_loss(network), 1e-5
    assert float(s) == pytest.approx(float(loss(theta + eps * v, x, z) - loss(theta - eps * v, x, z)) / (2 * eps), 1e-6)
    for place, (gradient, direction) in enumerate(zip(gradients, along, strict=True)):
        moved = [[t + side * eps * direction if i == place else t for i, t in enumerate((theta, x, z))]
                 for side in (1, -1)]  # fmt: skip
        up, down = (float(found.gradient(*given)[0] @ v) for given in moved)
        assert float((gradient * direction).sum()) == pytest.approx((up - down) / (2 * eps), rel=1e-5, abs=1e-7)


def test_threads_may_share_a_network():
    network = flat_of(without_norm)
    thetas = [network.fresh(seed) for seed in range(4)]
    expected = [network(theta, IMAGES) for theta in thetas]
    wrong = []

    def work(number):
        for _ in range(30):
            if not torch.equal(network(thetas[number], IMAGES), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_name_tells_what_is_computed():
    def named(factory):
        return own_network(factory, SHAPE, CLASSES).name

    assert named(Branched) == named(Branched)
    assert named(Branched).startswith("own:Branched#")
    names = {
        named(without_norm),
        named(lambda *sizes: Branched(*sizes, norm=False)),
        named(lambda *sizes: Branched(*sizes, norm=False, scale=0.25)),  # which no layer shows
        named(lambda *sizes: _with_other_shift(Branched(*sizes, norm=False))),
        named(lambda *sizes: nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))),
    }
    assert len({name.partition("#")[2] for name in names}) == 4
    assert named(lambda *sizes: Branched(*sizes, norm=False)).partition("#")[2] == named(without_norm).partition("#")[2]


def _with_other_shift(module):
    module.shift += 1
    return module


def test_a_name_whose_function_is_not_known_is_refused():
    gone = replace(own_network(Branched, SHAPE, CLASSES), name="own:gone#12345678")
    with pytest.raises(PotstillError, match=r"own:gone#12345678: was given as a function .* give it again"):
        flat.flat_network(gone, SHAPE, CLASSES)


def test_a_network_without_a_linear_end_has_no_features():
    network = flat_of(lambda *sizes: nn.Sequential(Branched(*sizes), nn.LogSoftmax(1)))
    module = module_of(Branched, 2)
    assert torch.equal(network(network.fresh(2), IMAGES), F.log_softmax(module(IMAGES), 1))
    with pytest.raises(PotstillError, match="does not end in a linear layer"):
        network.features(network.fresh(0), IMAGES)
    with pytest.raises(PotstillError, match="not known of an own one"):
        network.activations(network.fresh(0), IMAGES)


class Counting(Branched):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images):
        self.count += 1
        return super().forward(images)


def _noisy(*sizes):
    module = Branched(*sizes)
    module.head.weight.data += torch.randn(module.head.weight.shape, generator=_NOISE)
    return module


def _tied(*sizes):
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, CLASSES))
    module[2].weight = module[1].weight
    return module


_NOISE = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (Branched(*SHAPE, CLASSES), "of type Branched: give a function"),
        (lambda *sizes: 3, "of type int: give a function"),
        (
            lambda channels: Branched(*SHAPE, CLASSES),
            "lambda: fails for 8×8 images of 3 channels and 4 classes .TypeError",
        ),
        (lambda *sizes: nn.Linear(8, 8), r"gives outputs \(2, 3, 8, 8\) for 2 images"),
        (lambda *sizes: nn.Linear(7, 4), "fails for .*shapes cannot be multiplied"),
        (lambda *sizes: nn.Sequential(Branched(*sizes), nn.Dropout(0.2)), "draws random numbers whenever"),
        (lambda *sizes: nn.Flatten(), "has no parameters"),
        (Counting, "changes its buffer count"),
        (_noisy, "begins with other parameters each time"),
        (_tied, "shares parameters between its layers"),
    ],
)
def test_what_is_no_function_of_one_vector_is_refused(factory, message):
    with pytest.raises(PotstillError, match=message):
        own_network(factory, SHAPE, CLASSES)


def test_a_batchs_images_are_found_to_depend_on_each_other():
    class Centred(Branched):
        def forward(self, images):
            return super().forward(images - images.mean(0))

    assert flat_of(Branched).batch_coupled
    assert not flat_of(without_norm).batch_coupled
    assert flat_of(lambda *sizes: Centred(*sizes, norm=False)).batch_coupled
