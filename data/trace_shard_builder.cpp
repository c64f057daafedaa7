#include "data/trace_shard_builder.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "core/atomic_file.h"
#include "core/digest.h"
#include "core/error.h"
#include "data/hdf5_handle.h"
#include "data/little_endian.h"
#include "data/trace_format.h"
#include "data/trace_record.h"

namespace distill::data {
namespace {

namespace format = trace_format;

struct Region {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// Keeps the memory of a file that HDF5 holds in memory when it closes the file. (H5Fget_file_image, which copies it
// from an open one, leaves a wrong checksum in the superblock.)
struct ClosedImage {
  std::byte* bytes = nullptr;
  ~ClosedImage() { std::free(bytes); }

  H5FD_file_image_callbacks_t callbacks() {
    using Operation = H5FD_file_image_op_t;
    return {.image_malloc = [](size_t size, Operation, void*) { return std::malloc(size); },
            .image_memcpy = [](void* to, const void* from, size_t size, Operation,
                               void*) { return std::memcpy(to, from, size); },
            .image_realloc = [](void* old, size_t size, Operation, void*) { return std::realloc(old, size); },
            .image_free =
                [](void* image, Operation operation, void* self) {
                  if (operation == H5FD_FILE_IMAGE_OP_FILE_CLOSE) {
                    static_cast<ClosedImage*>(self)->bytes = static_cast<std::byte*>(image);
                  } else {
                    std::free(image);
                  }
                  return herr_t{0};
                },
            .udata_copy = [](void* self) { return self; },
            .udata_free = [](void*) { return herr_t{0}; },
            .udata = this};
  }
};

// The HDF5 calls that make one shard in memory; `name` is for messages.
class ImageWriter {
 public:
  ImageWriter(const std::string& name, size_t bytes) : name_(name) {
    const Hdf5Properties access(H5Pcreate(H5P_FILE_ACCESS), name, "prepare the file");
    check_hdf5(H5Pset_fapl_core(access.get(), bytes, false), name, "prepare the file");
    H5FD_file_image_callbacks_t callbacks = closed_.callbacks();
    check_hdf5(H5Pset_file_image_callbacks(access.get(), &callbacks), name, "prepare the file");
    // Structures of this version carry checksums and can be read by HDF5 1.8 and later.
    check_hdf5(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_V18), name, "prepare the file");
    check_hdf5(H5Pset_alignment(access.get(), 1, 8), name, "prepare the file");
    const Hdf5Properties creation(H5Pcreate(H5P_FILE_CREATE), name, "prepare the file");
    check_hdf5(H5Pset_userblock(creation.get(), format::kUserBlockBytes), name, "prepare the file");
    check_hdf5(H5Pset_obj_track_times(creation.get(), false), name, "prepare the file");
    file_ = Hdf5File(H5Fcreate(name.c_str(), H5F_ACC_EXCL, creation.get(), access.get()), name, "create the file");
    const Hdf5Properties untimed(H5Pcreate(H5P_GROUP_CREATE), name, "prepare a group");
    check_hdf5(H5Pset_obj_track_times(untimed.get(), false), name, "prepare a group");
    const Hdf5Group group(H5Gcreate2(file_.get(), "documents", H5P_DEFAULT, untimed.get(), H5P_DEFAULT), name,
                          "create group documents");
  }

  void attribute(const char* key, hid_t type, const void* value) {
    const Hdf5Space scalar(H5Screate(H5S_SCALAR), name_, "create an attribute");
    const Hdf5Attribute attribute(H5Acreate2(file_.get(), key, type, scalar.get(), H5P_DEFAULT, H5P_DEFAULT), name_,
                                  "create an attribute");
    check_hdf5(H5Awrite(attribute.get(), type, value), name_, "write an attribute");
  }

  void dataset(format::Dataset dataset, hid_t type, std::span<const std::byte> bytes) {
    const std::string title(format::kDatasetNames[dataset]);
    const std::string where = name_ + ": dataset " + title;
    const hsize_t count = bytes.size() / H5Tget_size(type);
    const Hdf5Space space(H5Screate_simple(1, &count, nullptr), where, "create it");
    const Hdf5Properties creation(H5Pcreate(H5P_DATASET_CREATE), where, "create it");
    check_hdf5(H5Pset_layout(creation.get(), H5D_CONTIGUOUS), where, "create it");
    check_hdf5(H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY), where, "create it");
    check_hdf5(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER), where, "create it");
    check_hdf5(H5Pset_obj_track_times(creation.get(), false), where, "create it");
    const Hdf5Dataset handle(
        H5Dcreate2(file_.get(), title.c_str(), type, space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT), where,
        "create it");
    if (bytes.empty()) return;
    check_hdf5(H5Dwrite(handle.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()), where, "write it");
    const haddr_t offset = H5Dget_offset(handle.get());
    core::check(offset != HADDR_UNDEF, "{}: HDF5 gave it no place", where);
    regions_[dataset] = {offset, bytes.size()};
  }

  // Closes the file and gives its bytes; the user block is still empty. To be called last, and once.
  std::vector<std::byte> finish() {
    check_hdf5(H5Fflush(file_.get(), H5F_SCOPE_GLOBAL), name_, "finish the file");
    const ssize_t size = check_hdf5(H5Fget_file_image(file_.get(), nullptr, 0), name_, "finish the file");
    const hid_t file = file_.release();
    check_hdf5(H5Fclose(file), name_, "finish the file");
    core::check(closed_.bytes != nullptr, "{}: HDF5 kept no image of the file", name_);
    return {closed_.bytes, closed_.bytes + format::kUserBlockBytes + size};
  }

  const std::array<Region, format::kDatasets>& regions() const { return regions_; }

 private:
  std::string name_;
  ClosedImage closed_;  // outlives file_
  Hdf5File file_;
  std::array<Region, format::kDatasets> regions_{};
};

void fill_user_block(std::vector<std::byte>& image, uint32_t version,
                     const std::array<Region, format::kDatasets>& regions) {
  const auto put = [&](size_t at, auto value) { std::memcpy(image.data() + at, &value, sizeof value); };
  std::memcpy(image.data(), format::kMagic.data(), format::kMagic.size());
  put(format::kVersionAt, version);
  put(format::kFileSizeAt, static_cast<uint64_t>(image.size()));
  for (size_t i = 0; i < regions.size(); ++i) put(format::kRegionsAt + i * sizeof(Region), regions[i]);

  format::Bulk bulk;
  std::ranges::transform(format::kBulk, bulk.begin(), [&](format::Dataset dataset) {
    return std::span(image).subspan(regions[dataset].offset, regions[dataset].bytes);
  });
  put(format::kStructureCrcAt, format::structure_crc(image, bulk));
  put(format::kBlockCrcAt, core::crc32c(std::span(image).first(format::kUserBlockBytes)));
}

template <typename T>
std::span<const std::byte> bytes_of(const T& values) {
  return std::as_bytes(std::span(values));
}

}  // namespace

TraceShardBuilder::TraceShardBuilder(const TraceProvenance& provenance, const TargetCodec& codec)
    : vocab_size_(provenance.vocab_size),
      version_(provenance.hidden_states ? format::kHiddenStatesVersion : format::kVersion),
      provenance_(provenance.to_json().dump()),
      codec_(codec.description().dump()),
      model_(codec.model()),
      payload_holds_tokens_(codec.holds_tokens()) {}

void TraceShardBuilder::add(const TraceDocument& document, std::span<const std::byte> payload,
                            std::span<const std::byte> hidden_states) {
  check_document(document, vocab_size_);
  core::check(sample_.empty() || last_key_ < document.key, "prompt '{}' sample {} does not follow '{}' sample {}",
              document.key.prompt_id, document.key.sample, last_key_.prompt_id, last_key_.sample);
  last_key_ = document.key;
  const size_t tokens_before = tokens_.size();
  if (!payload_holds_tokens_) append_tokens(tokens_, document.tokens, token_bytes(vocab_size_));
  payload_.insert(payload_.end(), payload.begin(), payload.end());
  prompt_ids_ += document.key.prompt_id;
  prompt_id_offsets_.push_back(prompt_ids_.size());
  token_offsets_.push_back(token_offsets_.back() + document.tokens.size());
  payload_offsets_.push_back(payload_.size());
  sample_.push_back(document.key.sample);
  prompt_length_.push_back(static_cast<uint32_t>(document.prompt_length));
  finish_reason_.push_back(static_cast<uint8_t>(document.finish_reason));
  verdict_.push_back(static_cast<uint8_t>(document.verdict));
  log_probability_.push_back(document.log_probability);
  seed_.push_back(document.seed);
  crc_.push_back(record_crc({.prompt_id = document.key.prompt_id,
                             .sample = sample_.back(),
                             .prompt_length = prompt_length_.back(),
                             .finish_reason = finish_reason_.back(),
                             .verdict = verdict_.back(),
                             .log_probability = document.log_probability,
                             .seed = document.seed,
                             .token_count = document.tokens.size(),
                             .tokens = std::span(tokens_).subspan(tokens_before),
                             .payload = payload}));
  append(hidden_, hidden_states);
  hidden_offsets_.push_back(hidden_.size());
  hidden_crc_.push_back(core::crc32c(hidden_states, crc_.back()));
}

std::vector<std::byte> TraceShardBuilder::image(const std::string& name) const {
  const auto lock = lock_hdf5();
  constexpr size_t kStructureBytes = 1 << 16;
  ImageWriter writer(
      name, tokens_.size() + payload_.size() + hidden_.size() + model_.size() + 64 * sample_.size() + kStructureBytes);
  const Hdf5Type text(H5Tcopy(H5T_C_S1), name, "create a text type");
  check_hdf5(H5Tset_size(text.get(), format::kFormatName.size()), name, "create a text type");
  check_hdf5(H5Tset_strpad(text.get(), H5T_STR_NULLPAD), name, "create a text type");
  writer.attribute("format", text.get(), format::kFormatName.data());
  writer.attribute("format_version", H5T_STD_U32LE, &version_);

  writer.dataset(format::kProvenance, H5T_STD_U8LE, bytes_of(provenance_));
  writer.dataset(format::kCodec, H5T_STD_U8LE, bytes_of(codec_));
  writer.dataset(format::kModel, H5T_STD_U8LE, model_);
  writer.dataset(format::kPromptIds, H5T_STD_U8LE, bytes_of(prompt_ids_));
  writer.dataset(format::kPromptIdOffsets, H5T_STD_U64LE, bytes_of(prompt_id_offsets_));
  writer.dataset(format::kSample, H5T_STD_U32LE, bytes_of(sample_));
  writer.dataset(format::kPromptLength, H5T_STD_U32LE, bytes_of(prompt_length_));
  writer.dataset(format::kTokenOffsets, H5T_STD_U64LE, bytes_of(token_offsets_));
  writer.dataset(format::kPayloadOffsets, H5T_STD_U64LE, bytes_of(payload_offsets_));
  writer.dataset(format::kFinishReason, H5T_STD_U8LE, bytes_of(finish_reason_));
  writer.dataset(format::kVerdict, H5T_STD_U8LE, bytes_of(verdict_));
  writer.dataset(format::kLogProbability, H5T_IEEE_F64LE, bytes_of(log_probability_));
  writer.dataset(format::kSeed, H5T_STD_U64LE, bytes_of(seed_));
  writer.dataset(format::kCrc32c, H5T_STD_U32LE, bytes_of(crc_));
  writer.dataset(format::kFidelity, H5T_STD_U8LE, bytes_of(fidelity_));
  writer.dataset(format::kTokens, token_bytes(vocab_size_) == 2 ? H5T_STD_U16LE : H5T_STD_U32LE, tokens_);
  writer.dataset(format::kPayload, H5T_STD_U8LE, payload_);
  if (version_ == format::kHiddenStatesVersion) {
    writer.dataset(format::kHiddenOffsets, H5T_STD_U64LE, bytes_of(hidden_offsets_));
    writer.dataset(format::kHiddenCrc32c, H5T_STD_U32LE, bytes_of(hidden_crc_));
    writer.dataset(format::kHidden, H5T_STD_U8LE, hidden_);
  }

  std::vector<std::byte> image = writer.finish();
  fill_user_block(image, version_, writer.regions());
  return image;
}

void TraceShardBuilder::write(const std::filesystem::path& path) const {
  core::check(documents() > 0, "{}: a shard holds at least one document", path.string());
  core::AtomicFile file(path);
  file.write(image(path.string()));
  file.commit();
}

}  // namespace distill::data
