#include "core/rank_environment.h"

#include <charconv>
#include <cstdlib>
#include <span>

#include "core/digest.h"
#include "core/error.h"

namespace distill::core {
namespace {

std::optional<std::string> variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? std::optional<std::string>(value) : std::nullopt;
}

int integer(const char* name, int low, int high) {
  const auto text = variable(name);
  if (!text) fail_usage("the environment has no {}, which this job's launcher should have set", name);
  int value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || end != text->data() + text->size() || value < low || value > high) {
    fail_usage("the environment's {} is '{}', not a number from {} to {}", name, *text, low, high);
  }
  return value;
}

constexpr int kMaxRanks = 1 << 20;
constexpr int kFirstPort = 20000;  // of those made up from a job's number
constexpr int kPorts = 20000;

uint16_t master_port(uint64_t job) {
  if (variable("MASTER_PORT")) return static_cast<uint16_t>(integer("MASTER_PORT", 1, 65535));
  return static_cast<uint16_t>(kFirstPort + job % kPorts);
}

RankEnvironment checked(RankEnvironment environment) {
  if (environment.rank >= environment.size) {
    fail_usage("{} made this rank {} of {} ranks", environment.launcher, environment.rank, environment.size);
  }
  return environment;
}

RankEnvironment from_torchrun() {
  const auto host = variable("MASTER_ADDR");
  if (!host) fail_usage("the environment has RANK and WORLD_SIZE, but no MASTER_ADDR to find rank 0 at");
  const auto or_zero = [](const char* name) { return variable(name) ? integer(name, 0, kMaxRanks) : 0; };
  return {.rank = integer("RANK", 0, kMaxRanks),
          .size = integer("WORLD_SIZE", 1, kMaxRanks),
          .local_rank = or_zero("LOCAL_RANK"),
          .host = *host,
          .port = static_cast<uint16_t>(integer("MASTER_PORT", 1, 65535)),
          .launcher = "torchrun",
          .attempt = or_zero("TORCHELASTIC_RESTART_COUNT")};
}

RankEnvironment from_slurm() {
  std::optional<std::string> host = variable("MASTER_ADDR");
  if (!host) {
    const auto nodes = variable("SLURM_STEP_NODELIST");
    if (!nodes) fail_usage("the environment has no SLURM_STEP_NODELIST; set MASTER_ADDR to the machine of rank 0");
    host = first_host(*nodes);
  }
  return {.rank = integer("SLURM_PROCID", 0, kMaxRanks),
          .size = integer("SLURM_STEP_NUM_TASKS", 1, kMaxRanks),
          .local_rank = integer("SLURM_LOCALID", 0, kMaxRanks),
          .host = *host,
          .port = master_port(static_cast<uint64_t>(integer("SLURM_JOB_ID", 0, INT32_MAX))),
          .launcher = "Slurm"};
}

RankEnvironment from_open_mpi() {
  std::optional<std::string> host = variable("MASTER_ADDR");
  const int size = integer("OMPI_COMM_WORLD_SIZE", 1, kMaxRanks);
  if (!host) {
    if (integer("OMPI_COMM_WORLD_LOCAL_SIZE", 1, kMaxRanks) != size) {
      fail_usage("the job spans several machines: set MASTER_ADDR to that of rank 0 (mpirun -x MASTER_ADDR)");
    }
    host = "127.0.0.1";
  }
  const std::string job = variable("PMIX_NAMESPACE").value_or("");
  return {.rank = integer("OMPI_COMM_WORLD_RANK", 0, kMaxRanks),
          .size = size,
          .local_rank = integer("OMPI_COMM_WORLD_LOCAL_RANK", 0, kMaxRanks),
          .host = *host,
          .port = master_port(crc32c(std::as_bytes(std::span(job)))),
          .launcher = "Open MPI"};
}

}  // namespace

std::string first_host(std::string_view node_list) {
  const size_t bracket = node_list.find_first_of("[,");
  if (bracket == std::string_view::npos || node_list[bracket] == ',') return std::string(node_list.substr(0, bracket));
  const size_t end = node_list.find_first_of("-,]", bracket);
  if (end == std::string_view::npos) fail_usage("Slurm's list of nodes '{}' has no end", node_list);
  const size_t close = node_list.find(']', bracket);
  if (close == std::string_view::npos) fail_usage("Slurm's list of nodes '{}' has no end", node_list);
  std::string host(node_list.substr(0, bracket));
  host += node_list.substr(bracket + 1, end - bracket - 1);
  const std::string_view rest = node_list.substr(close + 1);
  return host + std::string(rest.substr(0, rest.find(',')));
}

std::optional<RankEnvironment> rank_environment() {
  std::optional<RankEnvironment> found;
  if (variable("RANK") && variable("WORLD_SIZE")) {
    found = from_torchrun();
  } else if (variable("SLURM_STEP_NUM_TASKS") && variable("SLURM_PROCID")) {
    found = from_slurm();
  } else if (variable("OMPI_COMM_WORLD_RANK")) {
    found = from_open_mpi();
  }
  if (!found || found->size == 1) return std::nullopt;
  return checked(*found);
}

}  // namespace distill::core
