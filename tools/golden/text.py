"""Golden files of the CLIP text encoder: every layer's output behind the final norm, that is every clip skip."""

import torch

import models
from common import clip_tokenizer, prompt_ids, save

PROMPTS = {
    "empty": "",
    "short": "a house with a red roof on green hills under a sunny sky",
    "marks": "Ein Haus, don't — 3.14 & \"naïve\" (très) #42 :: 東京 🙂",
    "long": "masterpiece, best quality, " + ", ".join(f"a very detailed object number {n}" for n in range(30)),
}


# Embeddings so faint that the layer norm's epsilon decides; a power of two, so exact.
FAINT = 2.0**-6


def make(out):
    tokenizer = clip_tokenizer()
    for layout, seed, names in (("text64x2", 15, ("faint",)), ("text64x2", 11, ("empty", "short")), ("text64x5", 12, ("marks",)),
                                ("text128x3", 13, ("long",)), ("text64x5", 14, ("odd",))):
        model = models.build(layout, seed)["text"]
        for name in names:
            scale = FAINT if name == "faint" else 1.0
            with torch.no_grad():
                for key, value in model.state_dict().items():
                    if key.endswith("embedding.weight"):
                        value.mul_(scale)
            if name in ("odd", "faint"):
                # No prompt gives these: specials in the middle, first and last rows of the table.
                ids = torch.randint(0, 49408, (1, 77), generator=torch.Generator().manual_seed(seed))
                ids[0, :8] = torch.tensor([49406, 0, 49407, 49406, 49405, 1, 49407, 49407])
            else:
                ids = prompt_ids(tokenizer, PROMPTS[name])
            with torch.no_grad():
                states = model(ids, output_hidden_states=True).hidden_states
                norm = model.final_layer_norm if hasattr(model, "final_layer_norm") else model.text_model.final_layer_norm
                outputs = {f"out.skip{skip}": norm(states[-skip]) for skip in range(1, len(states))}
                last = model(ids).last_hidden_state
            assert torch.equal(last, outputs["out.skip1"])
            save(out, f"text/{layout}_{name}", {"in.ids": ids, **outputs}, "text.py", 1e-5,
                 layout=layout, seed=seed, embedding_scale=scale, prompt=PROMPTS.get(name, ""))


if __name__ == "__main__":
    import sys
    make(sys.argv[1])
