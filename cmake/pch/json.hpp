// Precompiled: the JSON library.
#pragma once

#include <nlohmann/json.hpp>
