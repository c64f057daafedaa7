// Which of a job's processes this one is, as its launcher says.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace distill::core {

struct RankEnvironment {
  int rank = 0;
  int size = 1;          // ranks in the job
  int local_rank = 0;    // among those of this machine
  std::string host;      // where rank 0 listens
  uint16_t port = 0;     //   and on what
  std::string launcher;  // "torchrun", "Slurm" or "Open MPI", for messages
  int attempt = 0;       // how often torchrun has started the job again, in the same store
};

// From the variables of torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, TORCHELASTIC_RESTART_COUNT),
// of srun (SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_NODELIST, SLURM_JOB_ID) or of Open MPI's
// mpirun (OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE and the job's name PMIX_NAMESPACE); MASTER_ADDR and
// MASTER_PORT win over what the last two imply. Nothing in a job of one process or outside of any. Throws UsageError
// naming the variable that is missing or wrong.
std::optional<RankEnvironment> rank_environment();

// The first host of Slurm's compressed form: "node07" of "node[07-09,12],login1".
std::string first_host(std::string_view node_list);

}  // namespace distill::core
