"""FALinear computes feedback alignment, and is otherwise a drop-in for nn.Linear."""

import pytest
import torch
from conftest import sides_of_the_law
from torch import nn
from torch.func import grad, vmap
from torch.nn import functional as F

from fa_linear import FALinear


def pair(bias=True):
    """An FALinear and an nn.Linear with the same weights."""
    torch.manual_seed(0)
    fa, bp = FALinear(6, 3, bias), nn.Linear(6, 3, bias)
    bp.load_state_dict({k: v for k, v in fa.state_dict().items() if k != "feedback"})
    return fa, bp


def gradients(layer, input, error, autocast=False):
    """Gradients of <layer(input), error>: of the input, then of each parameter."""
    input = input.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = layer(input)
    return torch.autograd.grad(output, [input, *layer.parameters()], error.to(output.dtype))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 5, 4, 6), (0, 6)])
def test_the_input_gradient_is_error_times_feedback_and_nothing_else_differs(shape, bias):
    fa, bp = pair(bias)
    input, error = torch.randn(shape), torch.randn(*shape[:-1], 3)
    torch.testing.assert_close(fa(input), bp(input))
    fa_input, *fa_rest = gradients(fa, input, error)
    bp_input, *bp_rest = gradients(bp, input, error)
    torch.testing.assert_close(fa_input, error @ fa.feedback)
    torch.testing.assert_close(bp_input, error @ fa.weight)
    torch.testing.assert_close(fa_rest, bp_rest)
    assert len(fa_rest) == 1 + bias


def test_feedback_is_kaiming_uniform_and_drawn_anew_by_reset_parameters():
    torch.manual_seed(0)
    layer = FALinear(600, 50)
    bound = (6 / 600) ** 0.5
    assert layer.feedback.abs().max() <= bound
    assert layer.feedback.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    before = layer.feedback.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.feedback, before)


@pytest.mark.parametrize("learning_rate", [0.1, 0.01])
def test_the_exact_law_behind_alignment(learning_rate):
    """Mini-batches, any step size: only plain SGD and the linear hidden layer are assumed."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 7), FALinear(7, 4)).double()
    images, labels = torch.randn(50, 12).double() + 0.5, torch.randint(4, (50,))
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate)
    W0, b0, *_ = parameters = list(network.parameters())
    before, squares = sides_of_the_law(network), 0
    for _ in range(100):
        for batch in torch.randperm(50).split(8):
            old = [parameter.detach().clone() for parameter in parameters]
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
            dW0, db0 = W0.detach() - old[0], b0.detach() - old[1]
            squares = squares + dW0 @ dW0.T + db0.outer(db0)
    pairs = zip(sides_of_the_law(network), before, strict=True)
    overlap, hidden = (now - then for now, then in pairs)
    assert overlap.norm() > 0.1
    torch.testing.assert_close(overlap, hidden - squares, rtol=0, atol=1e-10)


def test_on_unfolded_images_it_is_a_convolution_with_feedback_alignment():
    layer, images = FALinear(3 * 3 * 3, 5), torch.randn(2, 3, 8, 6, requires_grad=True)
    output = layer(F.unfold(images, 3, padding=1).mT).mT.unflatten(2, (8, 6))
    weight, feedback = layer.weight.view(5, 3, 3, 3), layer.feedback.view(5, 3, 3, 3)
    torch.testing.assert_close(output, F.conv2d(images, weight, layer.bias, padding=1))
    error = torch.randn_like(output)
    output.backward(error)
    torch.testing.assert_close(images.grad, F.conv_transpose2d(error, feedback, padding=1))


def test_the_feedback_is_converted_and_materialised_with_the_weights():
    layer = FALinear(6, 3, device="meta")
    layer.to_empty(device="cpu").reset_parameters()
    assert 0 < layer.feedback.abs().max() <= 1
    error = torch.randn(4, 3).double()
    input_gradient, *_ = gradients(layer.double(), torch.randn(4, 6).double(), error)
    torch.testing.assert_close(input_gradient, error @ layer.feedback)


def test_autocast_gives_linears_gradients():
    fa, bp = pair()
    fa.feedback.copy_(fa.weight.detach())
    input, error = torch.randn(4, 6), torch.randn(4, 3)
    results = [gradients(layer, input, error, autocast=True) for layer in (fa, bp)]
    torch.testing.assert_close(results[0], results[1])
    assert {gradient.dtype for gradient in results[0]} == {torch.float32}


def test_forward_mode_is_refused_as_feedback_alignment_has_none():
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(FALinear(6, 3), (torch.randn(6),), (torch.randn(6),))


def test_vmap_and_grad_give_each_examples_gradient():
    layer, inputs = FALinear(6, 3), torch.randn(7, 6)
    gradients_of_examples = vmap(grad(lambda input: layer(input).square().sum()))(inputs)
    torch.testing.assert_close(gradients_of_examples, 2 * layer(inputs) @ layer.feedback)


def test_compiles_as_one_graph():
    # aot_eager traces forward and backward as the default does, but needs no C++ compiler.
    layer, input, error = FALinear(6, 3), torch.randn(7, 6), torch.randn(7, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = gradients(layer, input, error)
    torch.testing.assert_close(gradients(compiled, input, error), expected)
