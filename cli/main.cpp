#include <c10/util/Exception.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "cli/commands.h"
#include "cli/option_checks.h"
#include "core/error.h"
#include "core/heap.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "kernels/threads.h"

namespace {

constexpr int kFailure = 1;
constexpr int kUsage = 2;
constexpr int kSignal = 128;  // plus the signal's number

int run(int argc, char** argv) {
  CLI::App app(
      "Example: distill quickstart --teacher SmolLM2-135M-Instruct.Q4_1.gguf\n\n"
      "Distils large Mixture-of-Experts language models into small dense ones.",
      "distill");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("distill ") + DISTILL_VERSION);
  app.fallthrough();

  std::string log_level = "info";
  app.add_option("--log-level", log_level, "debug, info, warning or error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
  int threads = 0;
  app.add_option("--threads", threads, "Threads to compute with; 0 means every core this process may use")
      ->check(distill::cli::non_negative())
      ->capture_default_str();
  app.parse_complete_callback([&] {
    if (threads != 1) distill::kernels::restart_with_short_spins(argv);
    distill::core::log::initialise(log_level);
    distill::kernels::set_num_threads(threads);
  });

  distill::cli::add_chat_command(app);
  distill::cli::add_completion_command(app);
  distill::cli::add_eval_command(app);
  distill::cli::add_export_command(app);
  distill::cli::add_generate_command(app);
  distill::cli::add_inspect_command(app);
  distill::cli::add_logits_command(app);
  distill::cli::add_quickstart_command(app);
  distill::cli::add_shards_command(app);
  distill::cli::add_tokenize_command(app);
  distill::cli::add_train_command(app);

  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::RequiredError& error) {
    // What is misspelt explains best what is missing.
    const auto unknown = app.remaining(true);
    if (unknown.empty()) return app.exit(error), kUsage;
    return app.exit(CLI::ExtrasError("distill", unknown)), kUsage;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUsage;
  }
}

// Whether all that was printed has arrived: a full disk shows only here.
bool flush_output() {
  if (std::ferror(stdout) == 0 && std::fflush(stdout) == 0) return true;
  std::fprintf(stderr, "distill: cannot write standard output: %s\n", std::strerror(errno));
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  distill::core::keep_freed_memory();
  try {
    const int code = run(argc, argv);
    return flush_output() || code != 0 ? code : kFailure;
  } catch (const distill::core::UsageError& error) {
    std::fprintf(stderr, "distill: %s\n", error.what());
    return kUsage;
  } catch (const distill::core::Interrupted& error) {
    std::fprintf(stderr, "distill: %s\n", error.what());
    return kSignal + distill::core::interrupt_signal();
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "distill: %s\n", error.what_without_backtrace());
    return kFailure;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "distill: %s\n", error.what());
    return kFailure;
  }
}
