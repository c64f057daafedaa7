// HDF5 identifiers that close themselves and calls that throw: errors name file and object and carry HDF5's own
// message. Not installed; only .cpp files include it.
#pragma once

#include <hdf5.h>

#include <mutex>
#include <string>
#include <string_view>
#include <utility>

namespace distill::data {

// Debian's HDF5 library is not thread-safe: hold this while calling it. Taking it also silences HDF5's own printing.
std::unique_lock<std::mutex> lock_hdf5();

// Throws Error "<where>: cannot <action>: <HDF5's innermost message>" if `result` is negative; returns it otherwise.
template <typename Result>
Result check_hdf5(Result result, std::string_view where, std::string_view action);
[[noreturn]] void fail_hdf5(std::string_view where, std::string_view action);

template <herr_t (*close)(hid_t)>
class Hdf5Handle {
 public:
  Hdf5Handle() = default;
  // Takes the identifier that `action` returned, or throws.
  Hdf5Handle(hid_t id, std::string_view where, std::string_view action) : id_(check_hdf5(id, where, action)) {}
  Hdf5Handle(Hdf5Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
  Hdf5Handle& operator=(Hdf5Handle&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  ~Hdf5Handle() {
    if (id_ >= 0) close(id_);
  }
  hid_t get() const { return id_; }
  hid_t release() { return std::exchange(id_, H5I_INVALID_HID); }

 private:
  hid_t id_ = H5I_INVALID_HID;
};

using Hdf5File = Hdf5Handle<H5Fclose>;
using Hdf5Group = Hdf5Handle<H5Gclose>;
using Hdf5Dataset = Hdf5Handle<H5Dclose>;
using Hdf5Space = Hdf5Handle<H5Sclose>;
using Hdf5Type = Hdf5Handle<H5Tclose>;
using Hdf5Attribute = Hdf5Handle<H5Aclose>;
using Hdf5Properties = Hdf5Handle<H5Pclose>;

template <typename Result>
Result check_hdf5(Result result, std::string_view where, std::string_view action) {
  if (result < 0) fail_hdf5(where, action);
  return result;
}

}  // namespace distill::data
