"""The table of all ops. They exist from here on, with or without a compiled library; `csrc/` only implements them."""

from __future__ import annotations

import torch

NAMESPACE = "lgld_ops"

SCHEMAS = (
    # x [B, C, H, W], weight [B, groups*Kh*Kw, Ho, Wo] -> [B, C, Ho, Wo]
    "involution2d(Tensor x, Tensor weight, int[2] kernel_size, int[2] stride=1, int[2] padding=0, int[2] dilation=1,"
    " int groups=1) -> Tensor",
    # grad_y [B, C, Ho, Wo], weight -> [B, C, height, width]
    "involution2d_grad_x(Tensor grad_y, Tensor weight, SymInt height, SymInt width, int[2] kernel_size, int[2] stride=1,"
    " int[2] padding=0, int[2] dilation=1, int groups=1) -> Tensor",
    # grad_y, x -> [B, groups*Kh*Kw, Ho, Wo]
    "involution2d_grad_weight(Tensor grad_y, Tensor x, int[2] kernel_size, int[2] stride=1, int[2] padding=0,"
    " int[2] dilation=1, int groups=1) -> Tensor",
    # grad_y, x, weight -> both gradients, of x and of weight
    "involution2d_gradients(Tensor grad_y, Tensor x, Tensor weight, int[2] kernel_size, int[2] stride=1, int[2] padding=0,"
    " int[2] dilation=1, int groups=1) -> (Tensor, Tensor)",
    # x [B, C, H, W], hidden_weight [D, C], hidden_bias [D], span_weight [K*K, D], span_bias [K*K] -> [B, C, H, W]
    "involution_layer(Tensor x, Tensor hidden_weight, Tensor hidden_bias, Tensor span_weight, Tensor span_bias,"
    " int kernel_size) -> Tensor",
    # grad_y [B, C, H, W] and the same -> gradients of x (empty unless need_x) and of the four parameters
    "involution_layer_backward(Tensor grad_y, Tensor x, Tensor hidden_weight, Tensor hidden_bias, Tensor span_weight,"
    " Tensor span_bias, int kernel_size, bool need_x=True) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    # x [B, I, H, W], weight [C, I+4] or [C, I+4, 1, 1] -> [B, C, ceil(H/stride), ceil(W/stride)], batch mean and variance [C]
    "fourier_feature_mixer(Tensor x, Tensor weight, Tensor? bias, Tensor fourier_weight_real, Tensor fourier_weight_imag,"
    " Tensor? bn_weight, Tensor? bn_bias, Tensor? running_mean, Tensor? running_var, bool training, float eps=1e-05,"
    " int stride=2) -> (Tensor, Tensor, Tensor)",
    # grad_y [B, C, Ho, Wo] and the same -> gradients of x (empty unless need_x), weight, bias, fourier_weight_real,
    # fourier_weight_imag, bn_weight, bn_bias (empty where there is no such parameter)
    "fourier_feature_mixer_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? bias, Tensor fourier_weight_real,"
    " Tensor fourier_weight_imag, Tensor? bn_weight, Tensor? bn_bias, Tensor? running_mean, Tensor? running_var,"
    " bool training, float eps=1e-05, int stride=2, bool need_x=True)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    # x [B, in_channels, H, W] float32 or uint8, parameters [count] (lgld_ops.fused) -> logits [B, classes], features [B, C]
    "lgldnet(Tensor x, Tensor parameters, int base_channels, int num_classes) -> (Tensor, Tensor)",
    # The same run `rounds` times, one stage after the other -> seconds [rounds, stages]
    "lgldnet_stage_times(Tensor x, Tensor parameters, int base_channels, int num_classes, int rounds) -> Tensor",
    # Its stages one by one, for tests and inspection, with h = ceil(H/2), w = ceil(W/2): the image -> a map [B, C, h, w]
    "lgldnet_local_stem(Tensor x, Tensor parameters, int base_channels, int num_classes) -> Tensor",
    "lgldnet_global_stem(Tensor x, Tensor parameters, int base_channels, int num_classes) -> Tensor",
    # lfa, and gce without its gate: map [B, C, h, w] float32 -> the same shape
    "lgldnet_local_features(Tensor map, Tensor parameters, int in_channels, int num_classes) -> Tensor",
    "lgldnet_context(Tensor map, Tensor parameters, int in_channels, int num_classes) -> Tensor",
    # gce's gate, lgfm and head: what the two before return -> logits [B, classes], features [B, C]
    "lgldnet_head(Tensor local, Tensor context, Tensor parameters, int in_channels, int num_classes) -> (Tensor, Tensor)",
)

LIBRARY = torch.library.Library(NAMESPACE, "DEF")
for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
