#pragma once
/// Samples of one quantity, and the flat JSON object that a run prints.

#include <chrono>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace shmstore::bench {

/// Measured values in one unit. Block by block, because what is compared runs interleaved.
class Samples {
 public:
  void begin_block() { blocks_.emplace_back(); }
  void add(double value) { blocks_.back().push_back(value); }
  /// Of all samples, 0 to 1.
  [[nodiscard]] double quantile(double q) const;
  [[nodiscard]] double median() const { return quantile(0.5); }
  /// Median over blocks of (this block's median ÷ the other's): drift of the machine cancels.
  [[nodiscard]] double ratio_to(const Samples& other) const;

 private:
  std::vector<std::vector<double>> blocks_;
};

class Report {
 public:
  void value(const std::string& key, double value) { values_.emplace_back(key, value); }
  /// The median, and the quartiles as KEY_p25 and KEY_p75.
  void samples(const std::string& key, const Samples& samples);
  [[nodiscard]] std::string json() const;

 private:
  std::vector<std::pair<std::string, double>> values_;
};

/// Microseconds that `operation` takes.
template <class Operation>
double microseconds(const Operation& operation) {
  const auto start = std::chrono::steady_clock::now();
  operation();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
      .count();
}

}  // namespace shmstore::bench
