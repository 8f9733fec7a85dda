#pragma once
/// The victims of the kill-point tests: a client that does every operation once, and one that does
/// nothing but write an array exclusively.

namespace shmstore::testing {

/// All bytes of whatever the script publishes have this value.
inline constexpr unsigned char kScriptByte = 0x5a;

/// Returns 0 when every operation did what it should.
int run_scripted_client(const char* socket_path);

/// Attaches "alone" exclusively, fills it with kScriptByte, and lets go of it as `how` says:
/// "release", "drop", "let_go", "give_up". With "replace" it puts a kept mutable array of that name
/// instead, filled likewise. Returns 0 when each step did what it should.
int run_exclusive_client(const char* socket_path, const char* how);

}  // namespace shmstore::testing
