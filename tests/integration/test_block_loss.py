"""The block loss under every way of training: loss and gradients are those of a plain pass in float32, by hand."""

from __future__ import annotations

import copy
import inspect
import io
import os
import pickle
import shutil
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import IterationEvents, SupervisedTrainer
from monai.networks.layers.factories import Conv
from monai.networks.nets import UNet
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ssmctb_monai.handlers import WeightAverage
from ssmctb_monai.losses import SelfSupervisedLoss, block_reconstruction_loss
from ssmctb_monai.networks import insert_block
from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB, SelfSupervisedBlock

DIMS = [2, 3]
WEIGHT = 2.0  # such that half of the gradients comes from the block losses
RATE = 0.05
ERRORS = {SSMCTB: F.huber_loss, SSPCAB: F.mse_loss}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
on_any_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])


def make_network(spatial_dims):
    """A block inserted into a MONAI network, and one behind it; nothing depends on the batch. The weights are fixed."""
    torch.manual_seed(0)
    unet = UNet(spatial_dims, 1, 8, channels=(8, 16), strides=(2,), bias=False)
    sample = torch.zeros(1, 1, *[8] * spatial_dims)
    insert_block(unet, lambda channels: SSMCTB(spatial_dims, channels, token_dim=8), "model.0.conv", sample=sample)
    return nn.Sequential(unet, SSPCAB(spatial_dims, 8, reduction_ratio=2), Conv[Conv.CONV, spatial_dims](8, 1, 1))


def make_batch(spatial_dims, batch=4, seed=0):
    return torch.rand(2, batch, 1, *[8] * spatial_dims, generator=torch.Generator().manual_seed(seed)).unbind()


def make_loss(network, weight=WEIGHT):
    return SelfSupervisedLoss(nn.MSELoss(), network, weight)


def blocks_of(network):
    return [module for module in network.modules() if isinstance(module, SelfSupervisedBlock)]


def passes_of(network):
    """What goes into each block and comes out of it, from now on."""
    passes = []
    for block in blocks_of(network):
        block.register_forward_hook(lambda block, args, output: passes.append((type(block), output, args[0])))
    return passes


def loss_by_hand(network, image, target, weight=WEIGHT):
    """In the graph, without what blocks keep; the network is one made for this."""
    passes = passes_of(network)
    task_loss = F.mse_loss(network(image), target)
    assert {kind for kind, _, _ in passes} == {SSMCTB, SSPCAB}
    return task_loss + weight * sum(ERRORS[kind](output, x) for kind, output, x in passes)


def by_hand(spatial_dims, image, target, weight=WEIGHT):
    """Loss and gradients of a new network."""
    network = make_network(spatial_dims)
    loss = loss_by_hand(network, image, target, weight)
    return loss.detach(), torch.autograd.grad(loss, list(network.parameters()))


def trained_by_hand(spatial_dims, batches, weight=WEIGHT):
    """Losses of gradient descent, and the weights it ends with."""
    network = make_network(spatial_dims)
    losses = []
    for image, target in batches:
        twin = make_network(spatial_dims)
        twin.load_state_dict(network.state_dict())
        loss = loss_by_hand(twin, image, target, weight)
        with torch.no_grad():
            gradients = torch.autograd.grad(loss, list(twin.parameters()))
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= RATE * gradient
        losses.append(loss.detach())
    return torch.stack(losses), weights(network)


def weights(network):
    return [parameter.detach().cpu().clone() for parameter in network.parameters()]


def gradients(network):
    return tuple(parameter.grad.cpu() for parameter in network.parameters())


def distance(network, values, expected):
    """Of values of the blocks' parameters, relative to what is expected."""
    names = [name for name, _ in network.named_parameters()]
    of_blocks = [("convolution" in name or "attention" in name) for name in names]
    one, other = (
        torch.cat([value.flatten() for value, chosen in zip(each, of_blocks, strict=True) if chosen])
        for each in (values, expected)
    )
    return float((one - other).norm() / other.norm())


@pytest.fixture(params=DIMS, ids=["2D", "3D"])
def spatial_dims(request):
    return request.param


@pytest.fixture
def network(spatial_dims):
    return make_network(spatial_dims)


@pytest.fixture
def batch(spatial_dims):
    return make_batch(spatial_dims)


def test_a_plain_pass(spatial_dims, network, batch):
    """The reference of all tests below, and how far off the gradients are without the block losses."""
    image, target = batch
    expected_loss, expected = by_hand(spatial_dims, image, target)
    loss = make_loss(network)(network(image), target)
    loss.backward()
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradients(network), expected)
    assert distance(network, by_hand(spatial_dims, image, target, weight=0)[1], expected) > 0.4
    assert distance(network, by_hand(spatial_dims, image, target, weight=2 * WEIGHT)[1], expected) > 0.4


# ------------------------------------------------------------------------------------------------------ mixed precision


@pytest.mark.parametrize("is_inside", [True, False])
def test_bfloat16(spatial_dims, network, batch, is_inside):
    """The loss may be computed inside and outside of autocast."""
    image, target = batch
    expected_loss, expected = by_hand(spatial_dims, image, target)
    passes = passes_of(network)
    loss_function = make_loss(network)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = network(image)
        loss = loss_function(prediction, target) if is_inside else None
    if not is_inside:
        loss = loss_function(prediction, target)
    assert prediction.dtype == passes[1][2].dtype == torch.bfloat16
    for block, (kind, output, x) in zip(blocks_of(network), passes, strict=True):
        assert torch.equal(block.reconstruction_loss, ERRORS[kind](output.float(), x.float()))
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected_loss, rtol=0.005, atol=0)
    loss.backward()
    assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in gradients(network))
    assert distance(network, gradients(network), expected) < 0.03


@pytest.mark.parametrize("loss", ["huber", "mse", "mae", "ssim"])
def test_block_loss_of_bfloat16_is_computed_in_float32(spatial_dims, loss):
    """The prediction, ReLU alone, has the same digits in both."""
    x = torch.randn(2, 3, *[12] * spatial_dims, generator=torch.Generator().manual_seed(0)).bfloat16()
    block = SelfSupervisedBlock(nn.Identity(), nn.Identity(), loss)
    block(x.float())
    expected = block.reconstruction_loss
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x).dtype == torch.bfloat16
    assert expected > 0.1
    assert torch.equal(block.reconstruction_loss, expected)


def test_training_in_bfloat16(spatial_dims, network):
    batches = [make_batch(spatial_dims, seed=seed) for seed in range(5)]
    expected_losses, expected = trained_by_hand(spatial_dims, batches)
    start = weights(network)
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    loss_function = make_loss(network)
    losses = []
    for image, target in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_function(network(image), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[-1] < 0.95 * losses[0]
    torch.testing.assert_close(torch.stack(losses), expected_losses, rtol=0.01, atol=0)
    moved, expected_moves = (
        [value - old for value, old in zip(each, start, strict=True)] for each in (weights(network), expected)
    )
    assert distance(network, moved, expected_moves) < 0.03


@on_any_device
def test_scaled_float16(spatial_dims, network, batch, device):
    """Unscaled gradients, and a step that takes them."""
    expected_loss, expected = by_hand(spatial_dims, *batch)
    network, start = network.to(device), weights(network)
    image, target = (value.to(device) for value in batch)
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    scaler = torch.amp.GradScaler(device, init_scale=1024)
    with torch.autocast(device, torch.float16):
        loss = make_loss(network)(network(image), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.cpu(), expected_loss, rtol=0.002, atol=0)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    assert distance(network, gradients(network), expected) < 0.01
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(
        weights(network), [old - RATE * gradient for old, gradient in zip(start, gradients(network), strict=True)]
    )


@on_any_device
def test_overflow_in_float16(spatial_dims, network, batch, device):
    """Steps are left out until the scale fits; then the first one is right, and the loss was right all the time."""
    expected_loss, expected = by_hand(spatial_dims, *batch)
    network, start = network.to(device), weights(network)
    image, target = (value.to(device) for value in batch)
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**24)
    scales = []
    while weights(network)[0].equal(start[0]):
        torch.testing.assert_close(weights(network), start, rtol=0, atol=0)
        optimizer.zero_grad()
        with torch.autocast(device, torch.float16):
            loss = make_loss(network)(network(image), target)
        torch.testing.assert_close(loss.cpu(), expected_loss, rtol=0.002, atol=0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        assert scales[-1] > 2
    assert scales == [*(2.0 ** (23 - index) for index in range(len(scales) - 1)), scales[-2]]  # of the step taken
    moved = [(old - value) / RATE for old, value in zip(start, weights(network), strict=True)]
    assert distance(network, moved, expected) < 0.01


# ------------------------------------------------------------------------------------------------------- MONAI's engine


def make_trainer(network, batches, loss_function, device="cpu", **keywords):
    """Gradient descent over batches, with the losses that the engine reports in ``trainer.losses``."""
    items = [{"image": image, "label": target} for pair in batches for image, target in zip(*pair, strict=True)]
    trainer = SupervisedTrainer(
        device=torch.device(device),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset(items), batch_size=len(batches[0][0])),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), RATE),
        loss_function=loss_function,
        decollate=False,
        **keywords,
    )
    trainer.losses = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: engine.losses.append(engine.state.output["loss"].detach().cpu())
    )
    return trainer


def test_supervised_trainer(spatial_dims, network):
    """Three iterations: each reports task + λ · block loss."""
    batches = [make_batch(spatial_dims, seed=seed) for seed in range(3)]
    trainer = make_trainer(network, batches, make_loss(network))
    trainer.run()
    losses, expected = trained_by_hand(spatial_dims, batches)
    torch.testing.assert_close(torch.stack(trainer.losses), losses)
    torch.testing.assert_close(weights(network), expected)


def test_weight_0_trains_as_the_task_loss_does(spatial_dims, network):
    batches = [make_batch(spatial_dims, seed=seed) for seed in range(3)]
    trainer, other = make_trainer(network, batches, make_loss(network, weight=0)), make_network(spatial_dims)
    expected = make_trainer(other, batches, nn.MSELoss())
    trainer.run()
    expected.run()
    assert trainer.losses == expected.losses
    torch.testing.assert_close(weights(network), weights(other), rtol=0, atol=0)
    assert block_reconstruction_loss(network) > 0.1


@needs_cuda
def test_supervised_trainer_in_float16(spatial_dims, network):
    batches = [make_batch(spatial_dims, seed=seed) for seed in range(3)]
    expected_losses, expected = trained_by_hand(spatial_dims, batches)
    start = weights(network)
    network.to("cuda")
    trainer = make_trainer(network, batches, make_loss(network), "cuda", amp=True)
    trainer.scaler = torch.amp.GradScaler("cuda", init_scale=1024)  # so that no step is left out
    trainer.run()
    torch.testing.assert_close(torch.stack(trainer.losses), expected_losses, rtol=0.01, atol=0)
    assert all(loss.dtype == torch.float32 for loss in trainer.losses)
    moved, expected_moves = (
        [value - old for value, old in zip(each, start, strict=True)] for each in (weights(network), expected)
    )
    assert distance(network, moved, expected_moves) < 0.01


# ------------------------------------------------------------------------------------------------ gradient accumulation


def test_gradient_accumulation(spatial_dims, network):
    """Halves of batches, and gradients set to zero only behind a step."""
    batches = [make_batch(spatial_dims, seed=seed) for seed in range(2)]
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    loss_function = make_loss(network)
    losses = []
    for image, target in batches:
        for half in zip(image.split(2), target.split(2), strict=True):
            loss = loss_function(network(half[0]), half[1]) / 2
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    expected_losses, expected = trained_by_hand(spatial_dims, batches)
    torch.testing.assert_close(torch.stack(losses).view(2, 2).sum(dim=1), expected_losses)
    torch.testing.assert_close(weights(network), expected)


@pytest.mark.skipif(
    "accumulation_steps" not in inspect.signature(SupervisedTrainer).parameters, reason="needs a newer MONAI"
)
def test_gradient_accumulation_of_monai(spatial_dims, network):
    batches = [make_batch(spatial_dims, seed=seed) for seed in range(2)]
    halves = [half for pair in batches for half in zip(*(value.split(2) for value in pair), strict=True)]
    trainer = make_trainer(network, halves, make_loss(network), accumulation_steps=2)
    trainer.run()
    losses, expected = trained_by_hand(spatial_dims, batches)
    torch.testing.assert_close(torch.stack(trainer.losses).view(2, 2).mean(dim=1), losses)
    torch.testing.assert_close(weights(network), expected)


def test_two_passes_before_one_backward(spatial_dims, network, batch):
    """Two views: of passes only the last one counts; to count both, the loss is called after each."""
    image, target = batch
    first, second = make_network(spatial_dims), make_network(spatial_dims)
    expected = (loss_by_hand(first, image, target, weight=0) + loss_by_hand(second, 2 * image, target)).detach()
    task_loss = F.mse_loss(network(image), target)
    loss = task_loss + make_loss(network)(network(2 * image), target)
    torch.testing.assert_close(loss, expected)

    losses = [make_loss(network)(network(view), target) for view in (image, 2 * image)]
    torch.stack(losses).sum().backward()
    views = [by_hand(spatial_dims, view, target)[1] for view in (image, 2 * image)]
    torch.testing.assert_close(gradients(network), tuple(one + other for one, other in zip(*views, strict=True)))


# --------------------------------------------------------------------------------------------- activation checkpointing


class Checkpointed(nn.Sequential):
    """Modules that keep none of their activations, but run again in the backward pass."""

    def __init__(self, *modules, use_reentrant=False):
        super().__init__(*modules)
        self.use_reentrant = use_reentrant

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=self.use_reentrant)


PARTS = {"SSPCAB": (1, 2), "SSPCAB first": (1, 3), "SSPCAB last": (0, 2), "all": (0, 3)}


def checkpoint_part(network, part, **keywords):
    start, end = PARTS[part]
    return nn.Sequential(*network[:start], Checkpointed(*network[start:end], **keywords), *network[end:])


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_checkpointing(spatial_dims, network, batch, part, early_stop):
    """The pass within backward leaves no trace: the loss is that of the first one, and its graph is gone."""
    image, target = batch
    expected_loss, expected = by_hand(spatial_dims, image, target)
    runs = []
    network[1].register_forward_pre_hook(lambda *_: runs.append(None))
    network = checkpoint_part(network, part)
    loss_function = make_loss(network)
    for _ in range(2):
        network.zero_grad()
        runs.clear()
        with set_checkpoint_early_stop(early_stop):
            prediction = network(image)
        loss = loss_function(prediction, target)
        kept = [block.reconstruction_loss for block in blocks_of(network)]
        assert len(runs) == 1
        loss.backward()
        assert len(runs) == 2
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(gradients(network), expected)
        assert all(block.reconstruction_loss is old for block, old in zip(blocks_of(network), kept, strict=True))
        logged = F.mse_loss(prediction, target) + WEIGHT * block_reconstruction_loss(network)
        torch.testing.assert_close(logged, expected_loss)
        for block, old in zip(blocks_of(network), kept, strict=True):
            with pytest.raises(RuntimeError, match="second time"):
                torch.autograd.grad(old, list(block.parameters()))


def test_checkpointing_inside_checkpointing(spatial_dims, network, batch):
    expected_loss, expected = by_hand(spatial_dims, *batch)
    network = Checkpointed(*checkpoint_part(network, "SSPCAB last"))
    loss = make_loss(network)(network(batch[0]), batch[1])
    kept = [block.reconstruction_loss for block in blocks_of(network)]
    loss.backward()
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradients(network), expected)
    assert all(block.reconstruction_loss is old for block, old in zip(blocks_of(network), kept, strict=True))


def test_checkpointing_in_bfloat16_with_accumulation(spatial_dims, network, batch):
    """The pass within backward runs under the same autocast; two backward passes through one graph count twice."""
    expected = by_hand(spatial_dims, *batch)[1]
    network = checkpoint_part(network, "all")
    with torch.autocast("cpu", torch.bfloat16):
        loss = make_loss(network)(network(batch[0]), batch[1])
    kept = block_reconstruction_loss(network)
    (loss / 2).backward(retain_graph=True)
    assert torch.equal(block_reconstruction_loss(network), kept)
    (loss / 2).backward()
    assert distance(network, gradients(network), expected) < 0.03


def test_checkpointing_with_reentrant_passes_is_refused(spatial_dims, network, batch):
    """It runs the first pass without gradient, and so would drop the block loss from training."""
    expected_loss = by_hand(spatial_dims, *batch)[0]
    network = checkpoint_part(network, "SSPCAB last", use_reentrant=True)
    loss_function = make_loss(network)
    image, target = batch[0].clone().requires_grad_(), batch[1]
    for _ in range(2):
        prediction = network(image)
        with pytest.raises(RuntimeError, match=r"SSMCTB '0\.0\.model\.0\.conv\.block' .*use_reentrant=False"):
            loss_function(prediction, target)
        F.mse_loss(prediction, target).backward()  # runs the blocks with gradient, too late
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            block_reconstruction_loss(network)
    with torch.no_grad():
        torch.testing.assert_close(loss_function(network(image), target), expected_loss)
    for block in blocks_of(network):
        block.requires_grad_(False)
    torch.testing.assert_close(loss_function(network(image), target).detach(), expected_loss)


# ------------------------------------------------------------------------------------------------------------ processes

SCENARIOS = {
    "loss of the wrapped network": {},
    "loss of the bare network": {"is_wrapped": False},
    "gradient accumulation": {"steps": 2},
    "unused parameters": {"find_unused_parameters": True, "has_unused": True},
    "gradient accumulation with unused parameters": {"steps": 2, "find_unused_parameters": True, "has_unused": True},
    "checkpointing": {"part": "all"},
    "checkpointing with unused parameters": {"part": "SSPCAB last", "find_unused_parameters": True},
}


def gradients_of_a_process(
    rank, spatial_dims, is_wrapped=True, steps=1, part=None, has_unused=False, find_unused_parameters=False
):
    """After a second round, since the first one may leave something behind."""
    network = make_network(spatial_dims)
    if part is not None:
        network = checkpoint_part(network, part)
    parameters = list(network.parameters())
    if has_unused:
        network[0].unused = nn.Linear(2, 2)
    wrapped = DistributedDataParallel(network, find_unused_parameters=find_unused_parameters)
    loss_function = make_loss(wrapped if is_wrapped else network)
    image, target = (value[rank::2] for value in make_batch(spatial_dims))
    for _ in range(2):
        wrapped.zero_grad()
        for step, (x, y) in enumerate(zip(image.chunk(steps), target.chunk(steps), strict=True), start=1):
            with wrapped.no_sync() if step < steps else nullcontext():
                (loss_function(wrapped(x), y) / steps).backward()
    return tuple(parameter.grad for parameter in parameters)


def run_process(rank, folder):
    distributed.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    results = {
        (name, spatial_dims): gradients_of_a_process(rank, spatial_dims, **scenario)
        for name, scenario in SCENARIOS.items()
        for spatial_dims in DIMS
    }
    torch.save(results, folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory):
    """Results of all scenarios from both of two processes: to start them takes longer than they run."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(run_process, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.process
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes(of_processes, spatial_dims, batch, name):
    """Gradients of the joint batch."""
    expected = by_hand(spatial_dims, *batch)[1]
    for results in of_processes:
        torch.testing.assert_close(results[name, spatial_dims], expected)


# -------------------------------------------------------------------------------------------------- averages of weights


@pytest.mark.parametrize("is_first", [True, False])
def test_averaged_model(spatial_dims, network, batch, is_first):
    """Made before a training pass or behind it; each keeps the loss of its own passes."""
    image, target = batch
    expected_loss, expected = by_hand(spatial_dims, image, target)
    loss_function = make_loss(network)
    averaged = AveragedModel(network) if is_first else None
    prediction = network(image)
    averaged = averaged or AveragedModel(network)
    assert [block.reconstruction_loss for block in blocks_of(averaged)] == [None, None]
    with torch.no_grad():
        averaged(3 * image)
    loss = loss_function(prediction, target)
    torch.testing.assert_close(loss, expected_loss)
    loss.backward()
    averaged.update_parameters(network)
    torch.testing.assert_close(gradients(network), expected)
    assert all(parameter.grad is None for parameter in averaged.parameters())

    loss = make_loss(averaged)(averaged(2 * image), target)
    torch.testing.assert_close(loss, by_hand(spatial_dims, 2 * image, target)[0])
    torch.testing.assert_close(loss_function(prediction, target).detach(), expected_loss)


def test_weight_average_in_a_trainer(spatial_dims, network):
    """The averaged network is evaluated between each pass and its loss, which must not notice."""
    batches = [make_batch(spatial_dims, seed=seed) for seed in range(3)]
    average = WeightAverage(network, decay=0.5)
    trainer = make_trainer(
        network, batches, make_loss(network), train_handlers=[average], event_names=[*IterationEvents]
    )
    evaluated = []

    @trainer.on(IterationEvents.FORWARD_COMPLETED)
    def evaluate(engine: Engine) -> None:
        average.network.eval()
        evaluated.append(average.network(engine.state.output["image"]))

    trainer.run()
    losses, expected = trained_by_hand(spatial_dims, batches)
    assert len(evaluated) == 3
    torch.testing.assert_close(torch.stack(trainer.losses), losses)
    torch.testing.assert_close(weights(network), expected)
    assert [block.reconstruction_loss for block in blocks_of(average.network)] == [None, None]
    assert block_reconstruction_loss(average.network) == 0
    states = [trained_by_hand(spatial_dims, batches[: count + 1])[1] for count in range(3)]
    averaged = states[0]  # then by min(decay, 2/11) and min(decay, 3/12)
    for decay, state in zip((2 / 11, 3 / 12), states[1:], strict=True):
        averaged = [decay * old + (1 - decay) * new for old, new in zip(averaged, state, strict=True)]
    torch.testing.assert_close(weights(average.network), averaged)


# --------------------------------------------------------------------------------------------------------------- copies


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value)), "save": saved}


@pytest.mark.parametrize("how", COPIES)
def test_copy_of_the_network_after_a_pass(spatial_dims, network, batch, how):
    image, target = batch
    expected_loss, expected = by_hand(spatial_dims, image, target)
    prediction = network(image)
    twin = COPIES[how](network)
    assert [block.reconstruction_loss for block in blocks_of(twin)] == [None, None]
    twin(2 * image)
    loss = make_loss(network)(prediction, target)
    loss.backward()
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradients(network), expected)
    torch.testing.assert_close(
        make_loss(twin)(twin(2 * image), target).detach(), by_hand(spatial_dims, 2 * image, target)[0]
    )


@pytest.mark.parametrize("how", COPIES)
def test_copy_of_network_and_loss(spatial_dims, network, batch, how):
    """Copied together they belong together; a copy of the loss alone has a network of its own, which nobody runs."""
    image, target = batch
    loss_function = make_loss(network)
    expected_loss, expected = by_hand(spatial_dims, image, target)
    loss_function(network(image), target)
    twin, loss_of_twin = COPIES[how]((network, loss_function))
    loss = loss_of_twin(twin(image), target)
    loss.backward()
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradients(twin), expected)
    assert all(parameter.grad is None for parameter in network.parameters())

    alone = COPIES[how](loss_function)
    prediction = network(image)
    with pytest.raises(RuntimeError, match="No block of the network has run"):
        alone(prediction, target)
    torch.testing.assert_close(loss_function(prediction, target).detach(), expected_loss)


# ------------------------------------------------------------------------------------------------------------- compiled


@pytest.mark.process
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a compiler")
def test_compiled(spatial_dims, network, batch):
    """In one graph; the loss of the compiled network and of the one that it was made from."""
    torch._dynamo.reset()
    expected_loss, expected = by_hand(spatial_dims, *batch)
    compiled = torch.compile(network, backend={2: "inductor", 3: "aot_eager"}[spatial_dims], fullgraph=True)
    for owner in (compiled, network):
        network.zero_grad()
        loss = make_loss(owner)(compiled(batch[0]), batch[1])
        loss.backward()
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(gradients(network), expected, rtol=1e-4, atol=1e-5)
