"""The programs that bench/training_bench.py compares training with: a plain loop of transformers and PyTorch, and TRL's
trainer. Each runs in a process of its own, in a folder with student/ and traces.jsonl, and prints {"tokens", "seconds",
"loss"} of the steps after the first options.warmup ones."""

import contextlib
import json
import os
import pathlib
import time

import torch
import transformers

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
IGNORED = -100


class Meter:
    """Tokens and seconds, of wall or processor time, of the measured steps."""

    def __init__(self, options):
        self.clock = time.process_time if options.cpu_clock else time.perf_counter
        self.warmup = options.warmup
        self.steps = self.tokens = 0
        self.start = None

    def count(self, tokens):
        self.tokens += tokens

    def step_done(self):
        self.steps += 1
        if self.steps == self.warmup:
            self.tokens, self.start = 0, self.clock()

    def result(self, loss):
        return dict(tokens=self.tokens, seconds=self.clock() - self.start, loss=loss)


def documents():
    return [json.loads(line) for line in pathlib.Path("traces.jsonl").read_text().splitlines()]


def student():
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained("student", dtype=torch.float32)


def padded_batch(batch):
    """Tokens and mask [documents, longest], the rows of the flattened logits that have a target, and the targets'
    labels, ids, weights and probability outside the ids."""
    longest = max(len(d["tokens"]) for d in batch) - 1
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    rows, labels, ids, q, u = [], [], [], [], []
    for i, d in enumerate(batch):
        length = len(d["tokens"]) - 1
        tokens[i, :length] = torch.tensor(d["tokens"][:-1])
        mask[i, :length] = 1
        first = d["prompt_length"] - 1
        rows += [i * longest + first + j for j in range(len(d["targets"]))]
        labels += d["tokens"][first + 1 :]
        ids += [t["ids"] for t in d["targets"]]
        q += [t["weights"] for t in d["targets"]]
        u += [t["uncovered"] for t in d["targets"]]
    return tokens, mask, *map(torch.tensor, (rows, labels, ids, q, u))


def run_loop(options):
    """As a plain script does it: batches padded to their longest document, the softmax of all logits, the stored ids
    gathered from it."""
    model = student()
    model.train()
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
              {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]  # fmt: skip
    rank = int(os.environ["RANK"]) if options.ranks > 1 else 0
    if options.ranks > 1:
        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    all_documents = documents()
    order = torch.randperm(len(all_documents), generator=torch.Generator().manual_seed(0)).tolist()
    position = len(all_documents) * rank // options.ranks

    def next_batch(limit):
        nonlocal position
        batch, tokens = [], 0
        while True:
            document = all_documents[order[position % len(order)]]
            length = len(document["tokens"]) - 1
            if batch and tokens + length > limit:
                return batch, tokens
            batch.append(document)
            tokens += length
            position += 1

    def loss_of(batch):
        tokens, mask, rows, labels, ids, q, u = padded_batch(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        log_p = logits.view(-1, logits.size(-1))[rows].float().log_softmax(-1)
        if options.objective == "labels":
            return -log_p.gather(-1, labels[:, None]).sum(), len(rows)
        head = log_p.gather(-1, ids)
        outside = torch.log1p(-head.exp().sum(-1).clamp(max=1 - 1e-6))
        kl = (torch.xlogy(q, q) - q * head).sum(-1) + torch.xlogy(u, u) - u * outside
        return kl.sum(), len(rows)

    meter = Meter(options)
    for _ in range(options.warmup + options.steps):
        tokens, targets, total = 0, 0, 0.0
        batches = []
        share = options.tokens // options.ranks
        while tokens < share * 7 // 8:
            batch, count = next_batch(min(options.micro_tokens, share))
            batches.append(batch)
            tokens += count
        for i, batch in enumerate(batches):
            with model.no_sync() if options.ranks > 1 and i + 1 < len(batches) else contextlib.nullcontext():
                loss, count = loss_of(batch)
                (loss / sum(len(d["targets"]) for b in batches for d in b)).backward()
            total += loss.item()
            targets += count
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.count(tokens * options.ranks)
        meter.step_done()
    return meter.result(total / targets)


def run_trl(options):
    """TRL's SFTTrainer with its fused head on labels; on stored targets with the loss of its ServerDistillationTrainer,
    which takes such targets from a server."""
    import datasets
    import trl
    from trl.experimental.server_distillation import ServerDistillationTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    tokenizer = transformers.AutoTokenizer.from_pretrained("student")
    examples = [dict(input_ids=d["tokens"], labels=[IGNORED] * d["prompt_length"] + d["tokens"][d["prompt_length"] :],
                     ids=[t["ids"] for t in d["targets"]], weights=[t["weights"] for t in d["targets"]])
                for d in documents()]  # fmt: skip
    collate_tokens = DataCollatorForLanguageModeling(pad_token_id=tokenizer.eos_token_id)

    def collate_targets(batch):
        """The targets lie at the tokens that they are distributions of."""
        output = collate_tokens(batch)
        shape = (*output["input_ids"].shape, len(batch[0]["ids"][0]))
        output["ids"] = torch.zeros(shape, dtype=torch.long)
        output["log_probs"] = torch.full(shape, -torch.inf)
        for i, d in enumerate(batch):
            completion = slice(len(d["input_ids"]) - len(d["ids"]), len(d["input_ids"]))
            output["ids"][i, completion] = torch.tensor(d["ids"])
            output["log_probs"][i, completion] = torch.tensor(d["weights"]).log()
        return output

    meter = Meter(options)

    class StepsCounted(transformers.TrainerCallback):
        def on_step_end(self, *arguments, **options):
            meter.step_done()

    class TokensCounted(trl.SFTTrainer):
        def training_step(self, model, inputs, *arguments, **options):
            meter.count(int(inputs["attention_mask"].sum()) - len(inputs["attention_mask"]))
            return super().training_step(model, inputs, *arguments, **options)

    class Stored(TokensCounted):
        loss_add_tail = True
        _reduce_divergence_loss = staticmethod(ServerDistillationTrainer._reduce_divergence_loss)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            mask, labels = inputs["attention_mask"], inputs["labels"]
            outputs = model(input_ids=inputs["input_ids"], attention_mask=mask)
            first = int((mask.sum(1) - (labels != IGNORED).sum(1)).min())
            targets = dict(topk_logprobs=inputs["log_probs"][:, first:], topk_token_ids=inputs["ids"][:, first:])
            log_probs = torch.nn.functional.log_softmax(outputs.logits[:, first - 1 : -1], dim=-1)
            loss = ServerDistillationTrainer._compute_server_forward_kl_loss(self, targets, log_probs, labels[:, first:])
            return loss / self.current_gradient_accumulation_steps

    length = sum(len(example["input_ids"]) - 1 for example in examples) / len(examples)
    stored = options.objective == "stored"
    trainer = (Stored if stored else TokensCounted)(
        model=student(), processing_class=tokenizer, train_dataset=datasets.Dataset.from_list(examples),
        data_collator=collate_targets if stored else collate_tokens, callbacks=[StepsCounted()],
        args=trl.SFTConfig(
            output_dir="trl", max_steps=options.warmup + options.steps, use_cpu=True, bf16=True, gradient_checkpointing=False,
            per_device_train_batch_size=max(1, round(options.micro_tokens / length)),
            gradient_accumulation_steps=options.tokens // options.micro_tokens, learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant", weight_decay=WEIGHT_DECAY, adam_beta2=0.95, max_grad_norm=1.0,
            optim="adamw_torch_fused", logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
            remove_unused_columns=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True},
            dataloader_pin_memory=False))  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return meter.result([line["loss"] for line in trainer.state.log_history if "loss" in line][-1])


PEERS = {"PyTorch": run_loop, "TRL": run_trl}


def run(options):
    torch.set_num_threads(options.threads)
    print(json.dumps(PEERS[options.as_peer](options)))
