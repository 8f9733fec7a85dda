#include "tests/bench/samples.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace shmstore::bench {
namespace {

double quantile_of(std::vector<double> values, double q) {
  if (values.empty()) return std::nan("");
  const auto at = values.begin() + std::lround(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

}  // namespace

double Samples::quantile(double q) const {
  std::vector<double> all;
  for (const auto& block : blocks_) all.insert(all.end(), block.begin(), block.end());
  return quantile_of(std::move(all), q);
}

double Samples::ratio_to(const Samples& other) const {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < std::min(blocks_.size(), other.blocks_.size()); ++i) {
    ratios.push_back(quantile_of(blocks_[i], 0.5) / quantile_of(other.blocks_[i], 0.5));
  }
  return quantile_of(std::move(ratios), 0.5);
}

void Report::samples(const std::string& key, const Samples& samples) {
  value(key, samples.median());
  value(key + "_p25", samples.quantile(0.25));
  value(key + "_p75", samples.quantile(0.75));
}

std::string Report::json() const {
  std::string text = "{";
  for (const auto& [key, value] : values_) {
    if (!std::isfinite(value)) continue;
    char number[64];
    std::snprintf(number, sizeof number, "%s\"%s\": %.6g", text.size() > 1 ? ", " : "", key.c_str(),
                  value);
    text += number;
  }
  return text + "}";
}

}  // namespace shmstore::bench
