// Writes random traces for the parity scripts:
//   write_sample_traces DIRECTORY TARGETS VOCAB DOCUMENTS DOCUMENTS_PER_SHARD plain|sets [bf16|fp8]
// with hidden states of that type if one is named.
#include <cstdio>
#include <exception>
#include <string>

#include "data/trace_writer.h"
#include "tests/data/sample_traces.h"

int main(int argc, char** argv) {
  using namespace distill::data;
  if (argc != 7 && argc != 8) return 2;
  try {
    TraceProvenance provenance = sample_provenance(argv[2], std::stoll(argv[3]));
    if (argc == 8) provenance = with_hidden_states(provenance, parse_hidden_type(argv[7]), /*width=*/150);
    TraceWriter writer(argv[1], provenance,
                       {.documents_per_shard = std::stoull(argv[5]), .entropy_coded = argv[6] == std::string("sets")});
    for (const Trace& trace : sample_traces(std::stoull(argv[4]), provenance, 40)) writer.append(trace);
    writer.finish();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
