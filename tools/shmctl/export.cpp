#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>

#include "commands.hpp"
#include "connect.hpp"
#include "dtype_names.hpp"
#include "json.hpp"
#include "npy.hpp"
#include "output.hpp"
#include "unique_fd.hpp"

// A regular file appears whole or not at all: it is written without a name (O_TMPFILE), or under a
// temporary one, and then renamed over the target. A pipe or device is written to as it is.

namespace shmctl {

using shmstore::AnyArray;
using shmstore::Client;
using shmstore::ErrorCode;
using shmstore::make_error;

namespace {

Result<void> write_array(int fd, const AnyArray& array, const std::string& file) {
  const std::string head = npy_header_bytes(array.dtype().text(), array.shape(), array.order());
  Result<void> written = write_fully(fd, std::as_bytes(std::span(head)), file);
  if (!written) return written;
  return write_fully(fd, {array.data(), array.bytes()}, file);
}

/// Where a symbolic link leads, so that the link is not replaced by the file.
std::string followed(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> real(realpath(path.c_str(), nullptr),
                                                         &std::free);
  return real ? std::string(real.get()) : path;
}

/// Gives the nameless file `fd` the name `path`, replacing what was there.
Result<void> link_over(int fd, const std::string& path) {
  const std::string self = "/proc/self/fd/" + std::to_string(fd);
  if (linkat(AT_FDCWD, self.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) == 0) return {};
  if (errno != EEXIST) return file_error(path, errno);
  // A link cannot replace: it takes a name nobody else has, then the rename does.
  const std::string temporary = path + ".shmctl." + std::to_string(getpid());
  if (linkat(AT_FDCWD, self.c_str(), AT_FDCWD, temporary.c_str(), AT_SYMLINK_FOLLOW) != 0) {
    return file_error(temporary, errno);
  }
  if (std::rename(temporary.c_str(), path.c_str()) == 0) return {};
  const Error error = file_error(path, errno);
  unlink(temporary.c_str());
  return error;
}

/// For file systems without O_TMPFILE.
Result<void> write_and_rename(const AnyArray& array, const std::string& path) {
  std::string temporary = path + ".shmctl.XXXXXX";
  const UniqueFd fd(mkostemp(temporary.data(), O_CLOEXEC));
  if (!fd.valid()) return file_error(path, errno);
  const mode_t mask = umask(0);
  umask(mask);
  Result<void> written = write_array(fd.get(), array, path);
  if (written &&
      (fchmod(fd.get(), 0666 & ~mask) != 0 || std::rename(temporary.c_str(), path.c_str()) != 0)) {
    written = file_error(path, errno);
  }
  if (!written) unlink(temporary.c_str());
  return written;
}

Result<void> write_file(const AnyArray& array, const std::string& file) {
  struct stat status {};
  const bool exists = stat(file.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) return file_error(file, EISDIR);
  if (exists && !S_ISREG(status.st_mode)) {
    const UniqueFd fd(open(file.c_str(), O_WRONLY | O_CLOEXEC));
    return fd.valid() ? write_array(fd.get(), array, file) : file_error(file, errno);
  }
  const std::string path = followed(file);
  const std::size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const UniqueFd fd(open(folder.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666));
  if (!fd.valid() && (errno == EOPNOTSUPP || errno == EISDIR)) return write_and_rename(array, path);
  if (!fd.valid()) return file_error(folder, errno);
  if (Result<void> written = write_array(fd.get(), array, file); !written) return written;
  return link_over(fd.get(), path);
}

}  // namespace

int run_export(const Globals& globals, const ExportOptions& options) {
  Result<Client> client = connect(globals);
  if (!client) return fail(client.error());
  shmstore::AttachOptions attach_options;
  attach_options.timeout = shmstore::kDoNotWait;
  Result<AnyArray> array = attach(*client, options.name, attach_options);
  // What is held exclusively is busy; else the only thing an attach waits for is a draft.
  if (!array && array.error().code == ErrorCode::timed_out) {
    return fail(make_error(ErrorCode::not_sealed,
                           "name: " + options.name + " is still a draft; seal it first"));
  }
  if (!array) return fail(array.error());
  const bool to_stdout = options.file == "-";
  Result<void> written = to_stdout ? write_array(STDOUT_FILENO, *array, "standard output")
                                   : write_file(*array, options.file);
  if (!written) return fail(written.error());
  if (to_stdout) return kDone;
  if (globals.json) {
    return print_json(json_object({{"name", json_quote(options.name)},
                                   {"file", json_quote(options.file)},
                                   {"version", std::to_string(array->version())},
                                   {"nbytes", std::to_string(array->bytes())}}));
  }
  say("exported " + options.name + " to " + options.file + ": " +
      dtype_for_people(array->dtype().text()) + " " + shape_text(array->shape()) + ", " +
      bytes_text(array->bytes()));
  return kDone;
}

}  // namespace shmctl
