#include "core/rank_environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "core/error.h"

namespace distill::core {
namespace {

using testing::HasSubstr;

class RankEnvironmentTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name :
         {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS",
          "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
          "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"}) {
      ::unsetenv(name);
    }
  }
  void TearDown() override { SetUp(); }
  static void set(std::initializer_list<std::pair<const char*, const char*>> variables) {
    for (const auto& [name, value] : variables) ::setenv(name, value, 1);
  }
};

TEST_F(RankEnvironmentTest, IsNothingOutsideOfAJobOrInAJobOfOneProcess) {
  EXPECT_FALSE(rank_environment());
  set({{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}});
  EXPECT_FALSE(rank_environment());
}

TEST_F(RankEnvironmentTest, ReadsTorchrunsVariables) {
  set({{"RANK", "3"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "1"}, {"MASTER_ADDR", "node1"}, {"MASTER_PORT", "29500"}});
  const auto found = rank_environment();
  ASSERT_TRUE(found);
  EXPECT_EQ(found->rank, 3);
  EXPECT_EQ(found->size, 8);
  EXPECT_EQ(found->local_rank, 1);
  EXPECT_EQ(found->host, "node1");
  EXPECT_EQ(found->port, 29500);
}

TEST_F(RankEnvironmentTest, TakesSlurmsFirstNodeAndAPortOfTheJobs) {
  set({{"SLURM_PROCID", "5"},
       {"SLURM_STEP_NUM_TASKS", "6"},
       {"SLURM_LOCALID", "2"},
       {"SLURM_STEP_NODELIST", "gpu[07-09]"},
       {"SLURM_JOB_ID", "40123"}});
  const auto found = rank_environment();
  ASSERT_TRUE(found);
  EXPECT_EQ(found->rank, 5);
  EXPECT_EQ(found->host, "gpu07");
  EXPECT_EQ(found->port, 20123);
}

TEST_F(RankEnvironmentTest, LeavesABatchScriptWithoutSrunAlone) {
  set({{"SLURM_PROCID", "0"}, {"SLURM_JOB_ID", "4"}});
  EXPECT_FALSE(rank_environment());
}

TEST_F(RankEnvironmentTest, NeedsAnAddressFromOpenMpiOnSeveralMachines) {
  set({{"OMPI_COMM_WORLD_RANK", "1"},
       {"OMPI_COMM_WORLD_SIZE", "4"},
       {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
       {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}});
  EXPECT_EQ(rank_environment()->host, "127.0.0.1");
  set({{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}});
  EXPECT_THROW(rank_environment(), UsageError);
}

TEST_F(RankEnvironmentTest, NamesTheVariableThatIsWrong) {
  set({{"RANK", "x"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}});
  try {
    rank_environment();
    FAIL() << "a rank of x";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("RANK is 'x'"));
  }
  set({{"RANK", "2"}});
  EXPECT_THROW(rank_environment(), UsageError);
}

TEST(FirstHost, IsTheFirstOfSlurmsCompressedLists) {
  EXPECT_EQ(first_host("login1"), "login1");
  EXPECT_EQ(first_host("a,b"), "a");
  EXPECT_EQ(first_host("node[07-09,12],login1"), "node07");
  EXPECT_EQ(first_host("node[12],login1"), "node12");
  EXPECT_EQ(first_host("rack[1-2]-ib,x"), "rack1-ib");
  EXPECT_THROW(first_host("node[1-"), UsageError);
}

}  // namespace
}  // namespace distill::core
