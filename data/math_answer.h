// Final answers of mathematical texts: finding them, and telling whether two mean the same.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace distill::data {

// The contents of the last \boxed{...} or \fbox{...} with balanced braces.
std::optional<std::string_view> last_boxed(std::string_view text);

// A LaTeX expression with everything dropped that does not change its meaning: spaces, \left and \right, dollars,
// degree and currency signs, \text around words, trailing full stops; \dfrac and \tfrac become \frac, \frac12 becomes
// \frac{1}{2}, thousands separators disappear.
std::string normalise_math(std::string_view expression);

// The value of a number: integer, decimal, with exponent, fraction as a/b or \frac{a}{b}, percentage; nothing if it is
// something else.
std::optional<double> math_value(std::string_view expression);

// Equal as numbers (to 1e-9 relative) or as normalised text.
bool same_math(std::string_view a, std::string_view b);

}  // namespace distill::data
