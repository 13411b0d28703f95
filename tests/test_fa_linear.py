"""FALinear computes feedback alignment, and is otherwise a drop-in for nn.Linear."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from fa_linear import FALinear, FALinearFunction

EVERY_SHAPE = pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 5, 4, 6), (0, 6)], ids=str)
WITH_AND_WITHOUT_BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def twins(bias=True):
    """Return an FALinear and an nn.Linear with the same weights."""
    fa, bp = FALinear(6, 3, bias), nn.Linear(6, 3, bias)
    bp.load_state_dict(fa.state_dict(), strict=False)
    return fa, bp


def gradients(layer, input, error):
    """Return the gradients of <layer(input), error>: of the input, then of each parameter."""
    input = input.detach().requires_grad_()
    output = layer(input)
    return torch.autograd.grad(output, [input, *layer.parameters()], error.to(output.dtype))


@EVERY_SHAPE
@WITH_AND_WITHOUT_BIAS
def test_the_output_is_that_of_nn_linear(shape, bias):
    fa, bp = twins(bias)
    input = torch.randn(shape)
    torch.testing.assert_close(fa(input), bp(input))


@EVERY_SHAPE
@WITH_AND_WITHOUT_BIAS
def test_the_input_gradient_is_error_times_feedback(shape, bias):
    fa, _ = twins(bias)
    error = torch.randn(*shape[:-1], 3)
    input_gradient, *_ = gradients(fa, torch.randn(shape), error)
    torch.testing.assert_close(input_gradient, error @ fa.feedback)


@EVERY_SHAPE
@WITH_AND_WITHOUT_BIAS
def test_the_gradients_of_weight_and_bias_are_those_of_nn_linear(shape, bias):
    fa, bp = twins(bias)
    input, error = torch.randn(shape), torch.randn(*shape[:-1], 3)
    _, *fa_gradients = gradients(fa, input, error)
    _, *bp_gradients = gradients(bp, input, error)
    torch.testing.assert_close(fa_gradients, bp_gradients)


def test_learns_as_a_first_layer_whose_input_has_no_gradient():
    fa, bp = twins()
    input, error = torch.randn(4, 6), torch.randn(4, 3)
    fa(input).backward(error)
    bp(input).backward(error)
    for fa_parameter, bp_parameter in zip(fa.parameters(), bp.parameters(), strict=True):
        torch.testing.assert_close(fa_parameter.grad, bp_parameter.grad)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_parameter_gets_no_gradient_and_the_rest_does(frozen):
    fa, _ = twins()
    getattr(fa, frozen).requires_grad_(False)
    input = torch.randn(4, 6, requires_grad=True)
    fa(input).sum().backward()
    learning = {name for name, parameter in fa.named_parameters() if parameter.grad is not None}
    assert learning == {"weight", "bias"} - {frozen}
    assert input.grad is not None


def test_the_feedback_is_drawn_as_nn_linear_draws_its_weight():
    torch.manual_seed(0)
    expected = nn.Linear(6, 3).weight
    torch.manual_seed(0)
    assert torch.equal(FALinear(6, 3).feedback, expected)


def test_weight_and_bias_are_the_next_draw():
    torch.manual_seed(0)
    nn.Linear(6, 3)
    expected = nn.Linear(6, 3)
    torch.manual_seed(0)
    layer = FALinear(6, 3)
    assert torch.equal(layer.weight, expected.weight)
    assert torch.equal(layer.bias, expected.bias)


def test_reset_parameters_draws_another_feedback():
    layer = FALinear(6, 3)
    before = layer.feedback
    layer.reset_parameters()
    assert not torch.isclose(layer.feedback, before).any()


def test_reset_parameters_under_a_parametrization_does_not_make_the_weight_the_feedback():
    layer = weight_norm(FALinear(6, 3))
    layer.reset_parameters()
    assert not torch.isclose(layer.feedback, layer.weight).any()


def test_the_feedback_is_no_parameter():
    assert [name for name, _ in FALinear(6, 3).named_parameters()] == ["weight", "bias"]


def test_the_feedback_is_saved_and_loaded():
    layer, other = FALinear(6, 3), FALinear(6, 3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.feedback, layer.feedback)


def test_the_feedback_is_on_the_device_and_of_the_type_of_the_weight():
    layer = FALinear(6, 3, device="meta", dtype=torch.float64)
    assert (layer.feedback.device, layer.feedback.dtype) == (layer.weight.device, torch.float64)


def test_the_feedback_is_converted_with_the_layer():
    assert FALinear(6, 3).double().feedback.dtype == torch.float64


def test_a_feedback_computed_from_the_weight_carries_no_graph():
    layer = FALinear(6, 3)
    input = torch.randn(4, 6, requires_grad=True)
    for _step in range(2):
        layer.feedback = layer.weight.sign() * layer.feedback.abs()
        (message,) = torch.autograd.grad(layer(input).sum(), input)
    torch.testing.assert_close(message, torch.ones(4, 3) @ layer.feedback)


def test_an_nn_linears_state_leaves_the_feedback_as_drawn():
    layer = FALinear(6, 3)
    before = layer.feedback.clone()
    layer.load_state_dict(nn.Linear(6, 3).state_dict(), strict=False)
    assert torch.equal(layer.feedback, before)


def convolution(layer, images):
    """Apply a layer to all patches of 5 x 5 pixels, as FALinear's docstring says."""
    patches = F.unfold(images, kernel_size=5).transpose(1, 2)
    outputs = layer(patches).transpose(1, 2)
    return outputs.unflatten(2, (4, 4))


def test_a_layer_applied_to_patches_is_a_convolution():
    layer, images = FALinear(2 * 5 * 5, 3), torch.randn(7, 2, 8, 8)
    expected = F.conv2d(images, layer.weight.unflatten(1, (2, 5, 5)), layer.bias)
    torch.testing.assert_close(convolution(layer, images), expected, rtol=1e-4, atol=1e-5)


def test_the_messages_of_that_convolution_go_through_the_feedback():
    layer, images = FALinear(2 * 5 * 5, 3), torch.randn(7, 2, 8, 8, requires_grad=True)
    error = torch.randn(7, 3, 4, 4)
    (message,) = torch.autograd.grad(convolution(layer, images), images, error)
    expected = F.conv_transpose2d(error, layer.feedback.unflatten(1, (2, 5, 5)))
    torch.testing.assert_close(message, expected, rtol=1e-4, atol=1e-5)


def test_the_exact_law_behind_alignment():
    """For any mini-batch and step size: only plain SGD and a linear hidden layer are assumed."""
    network = nn.Sequential(nn.Linear(12, 7), FALinear(7, 4)).double()
    before = copy.deepcopy(network)
    F.cross_entropy(network(torch.randn(8, 12).double()), torch.arange(8) % 4).backward()
    torch.optim.SGD(network.parameters(), lr=10).step()
    dW0, db0, dW, _ = (
        new.detach() - old.detach()
        for new, old in zip(network.parameters(), before.parameters(), strict=True)
    )
    hidden, read_out = before
    assert dW.norm() > 0.1
    law = dW0 @ hidden.weight.T + db0.outer(hidden.bias)
    torch.testing.assert_close(read_out.feedback.T @ dW, law.detach())


def test_what_was_copied_points_along_b_by_half_the_square_of_what_was_written():
    """Over many mini-batches of plain SGD; exact, if the squares of the steps are taken off."""
    hidden, read_out = nn.Linear(12, 7).double(), FALinear(7, 4).double()
    start = copy.deepcopy(hidden)
    optimizer = torch.optim.SGD([*hidden.parameters(), *read_out.parameters()], lr=0.1)
    copied, squares = 0, 0
    for _step in range(30):
        before = copy.deepcopy(hidden)
        inputs = torch.randn(8, 12).double()
        outputs = read_out(hidden(inputs))
        loss = F.cross_entropy(outputs, torch.arange(8) % 4)
        (e,) = torch.autograd.grad(loss, outputs, retain_graph=True)
        copied -= 0.1 * e.T @ (hidden(inputs) - start(inputs)).detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        squares += square_of_change(before, hidden)
    inner_product = (copied * read_out.feedback).sum()
    torch.testing.assert_close(inner_product, (square_of_change(start, hidden) - squares) / 2)


@torch.no_grad()
def square_of_change(before, after):
    """Return the squared size of the difference of two layers, weights and biases."""
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return sum((new - old).square().sum() for old, new in pairs)


def test_works_under_vmap():
    layer, inputs = FALinear(6, 3), torch.randn(7, 6)
    messages = vmap(grad(lambda input: layer(input).square().sum()))(inputs)
    torch.testing.assert_close(messages, 2 * layer(inputs) @ layer.feedback)


def test_works_under_compile():
    layer, inputs, errors = FALinear(6, 3), torch.randn(7, 6), torch.randn(7, 3)
    # aot_eager traces forward and backward as the default does, but needs no C++ compiler.
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = gradients(layer, inputs, errors)
    torch.testing.assert_close(gradients(compiled, inputs, errors), expected)


def test_compile_around_torch_func_is_right_once_the_function_is_allowed_in_the_graph():
    torch.compiler.allow_in_graph(FALinearFunction)
    network, images = nn.Sequential(nn.Linear(5, 6), FALinear(6, 3)), torch.randn(7, 5)
    state = {name: tensor.detach() for name, tensor in network.state_dict().items()}

    def loss(weights):
        return functional_call(network, state | weights, images).square().sum()

    weights = {name: state[name] for name, _ in network.named_parameters()}
    compiled = torch.compile(grad(loss), backend="aot_eager")
    torch.testing.assert_close(compiled(weights), grad(loss)(weights))


def test_works_under_autocast():
    layer, inputs, errors = FALinear(6, 3), torch.randn(7, 6), torch.randn(7, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = gradients(layer, inputs, errors)
    expected = gradients(layer, inputs, errors)
    torch.testing.assert_close(rounded, expected, rtol=0.02, atol=0.1)  # and of type float32


def test_complex_numbers_are_refused():
    layer = FALinear(6, 3, dtype=torch.complex64)
    with pytest.raises(TypeError, match="real numbers"):
        layer(torch.randn(4, 6, dtype=torch.complex64))


def test_forward_mode_is_refused():
    input = torch.randn(4, 6)
    with pytest.raises(NotImplementedError, match="forward mode"):
        jvp(FALinear(6, 3), (input,), (input,))


def test_second_derivatives_are_refused():
    layer, input = FALinear(6, 3), torch.randn(4, 6, requires_grad=True)
    (message,) = torch.autograd.grad(layer(input).square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        message.square().sum().backward()


def test_the_gradient_of_a_gradient_of_a_sum_is_zero_as_the_docstring_says():
    layer, input = FALinear(6, 3), torch.randn(4, 6, requires_grad=True)
    (message,) = torch.autograd.grad(layer(input).sum(), input, create_graph=True)
    assert not message.requires_grad


def test_nested_torch_func_transforms_give_zero_as_the_docstring_says():
    layer = FALinear(6, 3)

    def size_of_message(input):
        return grad(lambda x: layer(x).square().sum())(input).sum()

    assert not grad(size_of_message)(torch.randn(4, 6)).any()


def test_an_exported_program_sends_bps_messages_as_the_docstring_says():
    layer, input = FALinear(6, 3), torch.randn(4, 6, requires_grad=True)
    exported = torch.export.export(layer, (input,), strict=False).module()
    (message,) = torch.autograd.grad(exported(input).sum(), input)
    torch.testing.assert_close(message, torch.ones(4, 3) @ layer.weight)


def test_multihead_attention_sends_bps_messages_as_the_docstring_says():
    attention, twin = (nn.MultiheadAttention(6, 2) for _ in range(2))
    twin.load_state_dict(attention.state_dict())
    attention.out_proj = FALinear(6, 6)
    attention.out_proj.load_state_dict(twin.out_proj.state_dict(), strict=False)
    inputs = torch.randn(4, 6, requires_grad=True)
    (message,) = torch.autograd.grad(attention(inputs, inputs, inputs)[0].sum(), inputs)
    (expected,) = torch.autograd.grad(twin(inputs, inputs, inputs)[0].sum(), inputs)
    torch.testing.assert_close(message, expected)
