// Whether a completion gives the right answer.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "data/trace.h"

namespace distill::data {

// Only what follows the last </think> counts as the answer; a completion that never ends its thoughts is incorrect.
//   exact    the text is `answer`, apart from white space around both
//   numeric  the text's number equals the answer's: the one in \boxed{}, else after ####, else the last one;
//            thousands separators, currency and percent signs don't matter
//   choice   the letter chosen is `answer` ("B" or "(B)"): the one in \boxed{}, else after the last "answer is" or
//            "answer:", else the last in parentheses, bold or alone at the start of the text or of a line
//   math     the expression in the last \boxed{}, else after the last "answer is", else the last formula between
//            dollars, else the last number, equals `answer`: as a number or fraction, or else as normalised LaTeX
//   regex    the text contains a match of the Perl-compatible pattern `answer`; a match that takes too long is none
//   program  the command `answer`, given the text as standard input, exits with 0 in the sandbox (core/sandbox.h): no
//            network, no writing but in an empty /tmp, 10 s, 1 GiB. The caller waits for it
//            (VerificationQueue does not).
// Throws UsageError naming the verifiers if `verifier` is none of them, Error if `answer` cannot be one for it. Safe to
// call from several threads at once.
Verdict verify(std::string_view verifier, std::string_view answer, std::string_view completion);

// Throws as verify() would, without a completion: for checking prompts before anything is generated.
void check_verifier(std::string_view verifier, std::string_view answer);

// What a completion answers, in a form in which equal answers are equal texts (exact, numeric, choice, math); nothing
// if it gives no answer or the verifier compares no answers.
std::optional<std::string> extract_answer(std::string_view verifier, std::string_view completion);
bool compares_answers(std::string_view verifier);

// Whether it may take seconds.
bool runs_program(std::string_view verifier);

}  // namespace distill::data
