// A byte-level BPE tokenizer.json with the tokens "a", "b", "ab" and the special "<|im_start|>" (3) and "<|im_end|>"
// (4).
#pragma once

namespace distill::data {

inline constexpr const char* kSmallTokenizer = R"({
  "version": "1.0",
  "added_tokens": [
    {"id": 3, "content": "<|im_start|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
     "special": true},
    {"id": 4, "content": "<|im_end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
     "special": true}
  ],
  "normalizer": null,
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
  "post_processor": null,
  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"a": 0, "b": 1, "ab": 2, "<|im_start|>": 3, "<|im_end|>": 4}, "merges": ["a b"]}
})";

}  // namespace distill::data
