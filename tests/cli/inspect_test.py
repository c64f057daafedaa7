#!/usr/bin/env python3
"""What `distill inspect` prints of a model's configuration and cache. inspect_test.py PROGRAM"""

import json
import pathlib
import subprocess
import sys
import tempfile

V3 = dict(model_type="deepseek_v3", num_hidden_layers=61, hidden_size=7168, num_attention_heads=128, kv_lora_rank=512,
          qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128, num_nextn_predict_layers=1)  # fmt: skip
LLAMA = dict(model_type="llama", num_hidden_layers=16, hidden_size=2048, num_attention_heads=32, num_key_value_heads=8)
HUGE = 2**63 - 1


def inspect(config):
    """{label: text} of the rows; a row without a label belongs to the one before."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
        run = subprocess.run([sys.argv[1], "inspect", folder], capture_output=True, text=True, check=True)
    rows, label = {}, ""
    for line in run.stdout.splitlines()[1:]:
        label = line[2:16].strip() or label
        rows[label] = rows[label] + "\n" + line[17:] if label in rows else line[17:]
    return rows


def main():
    failures = []
    for config, cache in [
        (V3, "70.3 kB per token in bf16, 40.0 kB in FP8, besides those of prediction modules\n"
             "5.00 MB with keys and values of every head, 312 kB with grouped heads (8)"),
        (V3 | dict(num_nextn_predict_layers=0),
         "70.3 kB per token in bf16, 40.0 kB in FP8\n"
         "5.00 MB with keys and values of every head, 312 kB with grouped heads (8)"),
        (LLAMA, "32.8 kB per token in bf16"),
        (V3 | dict(num_hidden_layers=HUGE), None),
        (V3 | dict(kv_lora_rank=HUGE), None),
        (V3 | dict(num_hidden_layers=HUGE, kv_lora_rank=HUGE), None),
        (LLAMA | dict(num_hidden_layers=HUGE, num_key_value_heads=HUGE), None),
        (LLAMA | dict(num_attention_heads=0), None),
    ]:  # fmt: skip
        rows = inspect(config)
        if rows.get("cache") != cache:
            failures.append(f"of {config} it prints the cache as {rows.get('cache')!r}, not {cache!r}")
    sizes = inspect(V3)["sizes"]
    if sizes != "61 layers, 7168 hidden, 128 heads":
        failures.append(f"sizes are printed as {sizes!r}")
    print("\n".join(failures))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
