// The message of the error that an expression ends in; empty if it ends without one.
#pragma once

#include <string>

#include "core/error.h"

namespace distill {

template <typename Body>
std::string error_of(Body&& body) {
  try {
    body();
    return {};
  } catch (const core::Error& error) {
    return error.what();
  }
}

}  // namespace distill
