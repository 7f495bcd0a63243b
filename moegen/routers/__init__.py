"""Routers from papers, one file each, written in the DSL."""

from moegen.routers.ensemble import ensemble
from moegen.routers.expert_choice import expert_choice
from moegen.routers.group_limited import group_limited
from moegen.routers.hash_layer import hash_layer
from moegen.routers.loss_free import loss_free
from moegen.routers.mixtral import mixtral
from moegen.routers.noisy_top_k import noisy_top_k
from moegen.routers.null_experts import null_experts
from moegen.routers.optimal_transport import transport_expert_choice, transport_token_choice
from moegen.routers.shared_experts import shared_experts
from moegen.routers.sigmoid_top_k import sigmoid_top_k
from moegen.routers.soft import soft
from moegen.routers.switch import switch

__all__ = [
    "ensemble",
    "expert_choice",
    "group_limited",
    "hash_layer",
    "loss_free",
    "mixtral",
    "noisy_top_k",
    "null_experts",
    "shared_experts",
    "sigmoid_top_k",
    "soft",
    "switch",
    "transport_expert_choice",
    "transport_token_choice",
]
