"""Small random models of transformers: a family by name, with few and narrow layers and its own routing."""

import pytest
import torch

transformers = pytest.importorskip(
    "transformers", minversion="5.0", reason="transformers 5 is missing: pip install 'tritonmoe-bench[transformers]'"
)

WIDTHS = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": None,
          "pad_token_id": 0}  # fmt: skip
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
FAMILIES = {
    "mixtral": {"intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"moe_intermediate_size": 48, "shared_expert_intermediate_size": 96, "num_experts": 8,
                  "num_experts_per_tok": 4, "intermediate_size": 96},
    "qwen3_moe": {"moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True,
                  "intermediate_size": 96, "head_dim": 16},
    "deepseek_v3": {"moe_intermediate_size": 48, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4,
                    "topk_group": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "intermediate_size": 96,
                    "num_key_value_heads": 4, **LATENT},
    "gpt_oss": {"intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16,
                "sliding_window": 8},
    "olmoe": {"intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 4},
    "glm4_moe": {"moe_intermediate_size": 48, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1,
                 "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "intermediate_size": 96,
                 "head_dim": 16},
    "phimoe": {"intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2},
    "minimax_m2": {"intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 16,
                   "rotary_dim": 16},
}  # fmt: skip
"""What makes a small model of each family, beside `WIDTHS`."""


def model(family: str, dtype: torch.dtype, device: str, **changes):
    """A model in evaluation mode, the same for the same arguments, whose experts say much: weights of deviation 0.3."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **(WIDTHS | FAMILIES[family] | changes))
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, tensor in (*made.named_parameters(), *made.named_buffers()):
            if "norm" not in name and "inv_freq" not in name and tensor.is_floating_point():
                tensor.normal_(0, 0.12)
    return made.to(device)


def tokens(rows: int, columns: int, device: str) -> torch.Tensor:
    """int64 [rows, columns] of token ids."""
    return torch.randint(0, WIDTHS["vocab_size"], (rows, columns), generator=torch.Generator().manual_seed(1)).to(
        device
    )
