#pragma once
/// The victim of the kill-point test: a client that does every operation once.

namespace shmstore::testing {

/// All bytes of whatever the script publishes have this value.
inline constexpr unsigned char kScriptByte = 0x5a;

/// Returns 0 when every operation did what it should.
int run_scripted_client(const char* socket_path);

}  // namespace shmstore::testing
