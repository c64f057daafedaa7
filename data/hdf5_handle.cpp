#include "data/hdf5_handle.h"

#include "core/error.h"

namespace distill::data {
namespace {

// The stack is walked from the outermost call to the innermost; the last description says what really went wrong.
herr_t keep_innermost(unsigned, const H5E_error2_t* error, void* message) {
  if (error->desc != nullptr && *error->desc != '\0') *static_cast<std::string*>(message) = error->desc;
  return 0;
}

}  // namespace

std::unique_lock<std::mutex> lock_hdf5() {
  static std::mutex mutex;
  static bool silenced = false;
  std::unique_lock lock(mutex);
  if (!silenced) {
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    silenced = true;
  }
  return lock;
}

void fail_hdf5(std::string_view where, std::string_view action) {
  std::string message = "no reason given";
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, &keep_innermost, &message);
  H5Eclear2(H5E_DEFAULT);
  core::fail("{}: cannot {}: HDF5 says: {}", where, action, message);
}

}  // namespace distill::data
