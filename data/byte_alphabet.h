// The alphabet in which byte-level BPE writes bytes in vocabulary files (GPT-2's bytes_to_unicode): printable bytes of
// Latin-1 stand for themselves, the others for U+0100 and up in order, so that a space reads as U+0120.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace distill::data::byte_alphabet {

// The bytes that `token` stands for, or nothing if it has a character outside the alphabet. `token` is valid UTF-8.
std::optional<std::string> to_bytes(std::string_view token);

std::string from_bytes(std::string_view bytes);
// One byte, as from_bytes writes it.
std::string_view from_byte(unsigned char byte);

}  // namespace distill::data::byte_alphabet
