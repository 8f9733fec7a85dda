#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "commands.hpp"
#include "connect.hpp"
#include "npy.hpp"
#include "output.hpp"
#include "publish.hpp"
#include "unique_fd.hpp"

// The file is read(2) straight into the draft: one copy, and a file that shrinks meanwhile is a
// short read, where a mapped one would be SIGBUS. It works for pipes as well.

namespace shmctl {

using shmstore::AnyArray;
using shmstore::Client;
using shmstore::ErrorCode;
using shmstore::make_error;

namespace {

/// A file that is too short is refused before anything is created. Pipes are found out later.
Result<void> check_length(int fd, const NpyHeader& header, const std::string& file) {
  struct stat status {};
  if (fstat(fd, &status) != 0) return file_error(file, errno);
  if (!S_ISREG(status.st_mode)) return {};
  const off_t at = lseek(fd, 0, SEEK_CUR);
  Result<std::uint64_t> bytes = shmstore::array_bytes(header.dtype.itemsize(), header.shape);
  if (!bytes) return bytes.error();
  const auto have = static_cast<std::uint64_t>(std::max<off_t>(status.st_size - at, 0));
  if (have >= *bytes) return {};
  return make_error(ErrorCode::invalid_argument,
                    "file: " + file + " ends " + count_text(*bytes - have, "byte") + " too early");
}

}  // namespace

int run_import(const Globals& globals, const ImportOptions& options) {
  const bool from_stdin = options.file == "-";
  const std::string file = from_stdin ? "standard input" : options.file;
  UniqueFd opened;
  if (!from_stdin) {
    opened = UniqueFd(open(options.file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!opened.valid()) return fail(file_error(file, errno));
  }
  const int fd = from_stdin ? STDIN_FILENO : opened.get();
  Result<NpyHeader> header = read_npy_header(fd, file);
  if (!header) return fail(header.error());
  if (Result<void> long_enough = check_length(fd, *header, file); !long_enough) {
    return fail(long_enough.error());
  }
  Result<shmstore::CreateOptions> client_options = create_options(options.publish, header->order);
  if (!client_options) return fail(client_options.error());

  Result<Client> client = connect(globals, Autostart::if_missing);
  if (!client) return fail(client.error());
  Result<AnyArray> array = client->create_any(options.publish.name, header->dtype.text(),
                                              header->shape, *client_options);
  if (!array) return fail(array.error());
  Result<void> read = read_fully(fd, {array->writable_data(), array->bytes()}, file);
  if (!read) return fail(read.error());
  return publish(globals, *client, std::move(*array), options.publish, "imported");
}

}  // namespace shmctl
