"""The captioner as it is trained: the eyes, the language model, and heads that are thrown away.

B clips, T frames, L tokens, N places that are seen, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sora_cli.models.captioner import CLIP, PICTURE, Eyes, EyesConfig
from sora_cli.train.tokenizer import PAD, UNKNOWN
from sora_cli.train.world import CAMERAS, COLORS, FLOORS, MOTIONS, SIZES, SKIES, THINGS

END = "<end>"
SPECIALS = [PAD, END, UNKNOWN, PICTURE, CLIP]
VOCAB_SIZE, MAX_TOKENS = 768, 256
ANSWERS: dict[str, tuple[str, ...]] = {
    **{f"{name}{slot}": tuple(values) for slot in range(2) for name, values in (
        ("kind", THINGS), ("color", COLORS), ("size", SIZES), ("motion", MOTIONS))},
    "floor": FLOORS, "sky": SKIES, "camera": tuple(CAMERAS), "count": ("1", "2"),
}  # fmt: skip


class Student(nn.Module):
    """The eyes and the language model as they are trained, and heads that are thrown away.

    heads: read each attribute directly from what is seen. Without them the eyes would have to wait
        until the language model has learned to ask them.
    """

    def __init__(self, seed: int) -> None:
        from transformers import AutoModelForCausalLM, LlamaConfig

        super().__init__()
        torch.manual_seed(seed)
        eyes = EyesConfig()
        config = LlamaConfig(
            vocab_size=VOCAB_SIZE, hidden_size=eyes.hidden_size, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, head_dim=32, intermediate_size=384,
            tie_word_embeddings=True, max_position_embeddings=MAX_TOKENS, initializer_range=0.04,
            pad_token_id=0, bos_token_id=None, eos_token_id=SPECIALS.index(END),
        )  # fmt: skip
        self.eyes = Eyes(eyes)
        self.language_model = AutoModelForCausalLM.from_config(config)
        # Fused attention's backward pass is slow on a CPU on short rows.
        self.language_model.set_attn_implementation("eager")
        self.look = nn.Linear(eyes.hidden_size, 3)  # at the clip, the first and the second thing
        self.heads = nn.ModuleDict(
            {name: nn.Linear(eyes.hidden_size, len(values)) for name, values in ANSWERS.items()}
        )

    def forward(self, video: Tensor, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """[B, T, 3, H, W], [B, L] → hidden states [B, L, D], logits by attribute [B, values]"""
        seen = self.eyes(video)  # [B, N, D]
        said = self.language_model.get_input_embeddings()(input_ids)
        rows = torch.cat((seen, said), 1)
        hidden = self.language_model.model(inputs_embeds=rows, use_cache=False).last_hidden_state
        weights = self.look(seen).softmax(1)  # [B, N, 3]
        found = weights.transpose(1, 2) @ seen  # [B, 3, D]
        place = {name: 1 + int(name[-1]) if name[-1] in "01" else 0 for name in ANSWERS}
        return hidden[:, seen.shape[1] :], {
            name: head(found[:, place[name]]) for name, head in self.heads.items()
        }
